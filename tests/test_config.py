import pytest
import yaml

from dist_train.config import differences, dump_config, load_config
from dist_train.errors import UserError


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    tree = {"run_dir": str(tmp_path / "run"), "data": {"path": str(tmp_path / "set")}, "train": {"steps": 10}}
    path.write_text(yaml.safe_dump(tree))
    return path


def test_overrides_are_parsed_as_yaml_and_reach_nested_sections(recipe):
    config = load_config(recipe, ["head.sample_rate=0.2", "optimizer.lr=5e-2", "train.micro_batch_size=null"])
    assert config.head.sample_rate == 0.2
    assert config.optimizer.lr == 0.05
    assert config.train.micro_batch_size is None


def test_an_unknown_key_is_refused_with_the_nearest_right_one(recipe):
    with pytest.raises(UserError, match=r"head\.sample_rat: unknown key; did you mean head\.sample_rate\?"):
        load_config(recipe, ["head.sample_rat=0.2"])
    with pytest.raises(UserError, match=r"heda: unknown key; did you mean head\?"):
        load_config(recipe, ["heda.sample_rate=0.2"])


def test_every_mistake_is_listed_at_once_with_its_key_and_value(recipe):
    with pytest.raises(UserError) as caught:
        load_config(recipe, ["head.sample_rate=1.5", "optimizer.lr=-1", "train.global_batch_size=many"])
    message = str(caught.value)
    assert "head.sample_rate: input should be less than or equal to 1; found 1.5" in message
    assert "optimizer.lr: input should be greater than 0; found -1" in message
    assert "train.global_batch_size" in message
    assert "'many'" in message


def test_length_is_given_once(recipe):
    with pytest.raises(UserError, match="train: give one of epochs and steps"):
        load_config(recipe, ["train.epochs=1"])


def test_compile_and_activation_checkpointing_are_not_asked_for_together(recipe):
    with pytest.raises(UserError, match="train: compile decides itself what to compute again"):
        load_config(recipe, ["train.compile=true", "train.activation_checkpointing=true"])


def test_two_evaluation_sets_of_one_name_are_refused(recipe):
    with pytest.raises(UserError, match=r"evaluate.verification: .*sets a/lfw.bin and b/lfw.bin are both called 'lfw'"):
        load_config(recipe, ["evaluate.verification=[a/lfw.bin, b/lfw.bin]"])
    load_config(recipe, ["evaluate.verification=[a/lfw.bin, a/agedb.bin]", "evaluate.identification=[a/lfw]"])


def test_a_missing_key_is_named(recipe):
    recipe.write_text("train: {steps: 1}\n")
    with pytest.raises(UserError, match="run_dir: missing"):
        load_config(recipe)


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "not YAML"), ("- 1", "expected sections with keys, found list"), ("", "found NoneType")],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_config(path)


def test_a_missing_file_and_a_malformed_override_are_refused(recipe, tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.yaml: No such file"):
        load_config(tmp_path / "nowhere.yaml")
    with pytest.raises(UserError, match=r"'head\.sample_rate': expected section\.key=value"):
        load_config(recipe, ["head.sample_rate"])
    with pytest.raises(UserError, match="seed is a value, not a section"):
        load_config(recipe, ["seed=1", "seed.x=1"])


def test_the_resolved_config_reads_back_equal(recipe, tmp_path):
    config = load_config(recipe)
    stored = tmp_path / "config.yaml"
    stored.write_text(dump_config(config))
    assert load_config(stored) == config
    assert "sample_rate" in stored.read_text()


def test_differences_name_key_and_both_values(recipe):
    assert differences(load_config(recipe), load_config(recipe, ["optimizer.lr=0.5"])) == ["optimizer.lr: 0.1 -> 0.5"]


def _laughs(rows):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, rows)]
    return "\n".join(lines) + f"\nseed: *a{rows - 1}\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b"{a: " * 3000, "nested too deeply"),
        (b"run_dir: \xa0\n", "byte 9 is not UTF-8"),
        ("run_dir: x\n".encode("utf-16"), "is not UTF-8|not YAML"),
        (b"seed: !!float x\n", "'x' is no float.*line 1, column 7"),
        (b"seed: !!timestamp x\n", "'x' is no timestamp"),
        (b"seed: !!bool maybe\n", "'maybe' is no bool"),
        (b"seed: 2001-13-99\n", "'2001-13-99' is no timestamp"),
        (b"seed: " + b"9" * 5000, "is no int"),
        (b"seed: !!python/object/apply:os.system ['true']\n", "could not determine a constructor"),
        (b'run_dir: "a\\0b"\n', "run_dir: '\\\\x00' in .* remove the control character"),
        (b'track: {name: "\\ud800"}\n', "track.name: .*remove the control character"),
        (b"run_dir: &a [*a]\n", "nested deeper than 20 sections"),
        (_laughs(12).encode(), "too many values"),
        (b"# " + b"x" * (1 << 18), "more than 256 kB"),
    ],
)
def test_a_recipe_that_is_damaged_or_hostile_is_one_error(tmp_path, content, message):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"(?s){message}") as caught:
        load_config(path)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("value", [".inf", "1e999", "1e400", ".nan", "-.inf"])
def test_numbers_that_are_not_finite_are_refused(recipe, value):
    with pytest.raises(UserError, match=r"optimizer\.lr: "):
        load_config(recipe, [f"optimizer.lr={value}"])


def test_whole_numbers_beyond_64_bits_are_refused(recipe):
    with pytest.raises(UserError, match=r"train\.steps: expected a finite number that 64 bits hold; found 1844"):
        load_config(recipe, ["train.steps=18446744073709551616"])


def test_overrides_are_checked_as_the_recipe_is(recipe):
    with pytest.raises(UserError, match="'x' is no float"):
        load_config(recipe, ["optimizer.lr=!!float x"])
    with pytest.raises(UserError, match="nested too deeply"):
        load_config(recipe, ["seed=" + "[" * 5000])
    with pytest.raises(UserError, match="nested deeper than 20 sections"):
        load_config(recipe, [".".join("a" * 1500) + "=1"])
