"""The `phases` of a recipe: whole recipes made of them, and mistakes named by their keys. No run."""

import pytest
import yaml

from dist_train.config import differences, dump_config, load_config
from dist_train.errors import UserError
from dist_train.start.freeze import Freezing
from dist_train.train.schedule import learning_rate, rate_at

CHANGES = [
    {"at": 4, "head": {"sample_rate": 1.0}, "optimizer": {"lr": 0.05, "warmup_steps": 1}},
    {"at": 7, "data": {"augment": {"flip": 0.0}}, "start": {"freeze": ["stem"]}},
]


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"run_dir: {tmp_path}/run\ndata: {{path: set}}\nhead: {{sample_rate: 0.1, m2: 0.4}}\ntrain: {{steps: 10}}\n"
        "optimizer: {lr: 0.1, warmup_steps: 2}\nstart: {freeze: [norms], freeze_steps: 3}\n"
    )
    return path


def load(recipe, phases, *more):
    return load_config(recipe, [f"phases={yaml.safe_dump(phases, default_flow_style=True)}", *more])


def test_each_phase_builds_on_those_before_it(recipe):
    config = load(recipe, CHANGES)
    assert [begin for begin, _ in config.recipes] == [0, 4, 7]
    assert [config.at(step).head.sample_rate for step in (0, 3, 4, 9)] == [0.1, 0.1, 1.0, 1.0]
    assert config.at(9).head.m2 == 0.4
    assert (config.at(6).data.augment.flip, config.at(7).data.augment.flip) == (0.5, 0.0)
    assert config.at(9).phases == ()
    assert config.at(9).run_dir == config.run_dir


def test_a_recipe_without_phases_is_the_recipe_of_every_step(recipe):
    config = load_config(recipe)
    assert config.at(0) is config.at(1000) is config
    assert [rate_at(config, step, 10) for step in range(10)] == [
        learning_rate(config.optimizer, step, 10) for step in range(10)
    ]


def test_a_stored_recipe_has_the_phases_as_they_were_written_and_differences_name_their_keys(recipe, tmp_path):
    config = load(recipe, CHANGES)
    stored = tmp_path / "stored.yaml"
    stored.write_text(dump_config(config))
    assert yaml.safe_load(stored.read_text())["phases"] == CHANGES
    assert load_config(stored) == config
    assert differences(load_config(stored), config) == []
    shorter = load(recipe, [CHANGES[0] | {"head": {"sample_rate": 0.5}}])
    assert differences(config, shorter) == [
        "phases.0.head.sample_rate: 1.0 -> 0.5",
        "phases.1.at: 7 -> None",
        "phases.1.data.augment.flip: 0.0 -> None",
        "phases.1.start.freeze: ['stem'] -> None",
    ]
    assert differences(load_config(recipe), shorter)[0] == "phases.0.at: None -> 4"


def test_a_copy_of_a_recipe_has_phases_of_its_own(recipe):
    config = load(recipe, CHANGES)
    assert config.at(4).seed == 0
    assert config.model_copy(update={"seed": 3}).at(4).seed == 3


def test_keys_of_the_optimizer_begin_a_schedule_that_ends_where_the_next_begins(recipe):
    config = load(recipe, [*CHANGES, {"at": 8, "optimizer": {"schedule": "constant"}}])
    first, second = config.optimizer, config.at(4).optimizer
    expected = [learning_rate(first, step, 4) for step in range(4)]
    expected += [learning_rate(second, step, 4) for step in range(4)]
    expected += [0.05, 0.05]
    assert [rate_at(config, step, 10) for step in range(10)] == expected
    assert expected[4] == second.lr


def test_parts_of_a_phase_stand_still_until_another_names_others(recipe):
    config = load(recipe, [*CHANGES, {"at": 9, "start": {"freeze": []}}])
    freezing = Freezing.of([(begin, each.start) for begin, each in config.recipes])
    assert [freezing.at(step) for step in (0, 2, 3, 6, 7, 8, 9)] == [
        ("norms",), ("norms",), (), (), ("stem",), ("stem",), ()
    ]  # fmt: skip
    assert [freezing.until(step) for step in (0, 3, 7, 9)] == [3, 7, 9, None]
    assert freezing.ever == ("norms", "stem")


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        (7, "phases: input should be a valid tuple; found 7"),
        ([7], "phases.0: input should be a valid dictionary"),
        ([{"head": {"scale": 3}}], "phases.0.at: missing"),
        ([{"at": 0, "head": {"scale": 3}}], "phases.0.at: input should be greater than or equal to 1; found 0"),
        ([{"at": 10, "head": {"scale": 3}}], "phases.0.at: such a step never comes in a run of 10 steps"),
        ([{"at": 5, "head": {"scale": 3}}, {"at": 5, "head": {"scale": 4}}], "phases.1.at: the phase before begins"),
        ([{"at": 5}], "phases.0: the phase changes nothing"),
        ([{"at": 5, "head": {"sample_rate": 0.1}}], "phases.0: the phase changes nothing"),
        ([{"at": 5, "head": {"sampel_rate": 1}}], "phases.0.head.sampel_rate: unknown key; did you mean phases.0.head"),
        ([{"at": 5, "haed": {}}], "phases.0.haed: unknown key; did you mean phases.0.head"),
        ([{"at": 5, "head": {"sample_rate": 2}}], "phases.0.head.sample_rate: input should be less than or equal to 1"),
        ([{"at": 5, "head": {"storage": "host"}}], "phases.0.head.storage: cannot change within a run; what can: ada"),
        ([{"at": 5, "head": {"margin": "cosface"}}], r"phases.0.head: margin 'cosface' does not read \['m2'\]"),
        ([{"at": 5, "head": {"margin": "softmax", "m2": None}}], "phases.0.head.margin: softmax keeps a bias"),
        ([{"at": 5, "head": None}], "phases.0.head: input should be a valid dictionary"),
        ([{"at": 5, "train": {"steps": 5}}], "phases.0: train cannot change within a run; a phase has at, head"),
        ([{"at": 5, "optimizer": {"name": "adamw"}}], "phases.0.optimizer.name: cannot change within a run"),
        ([{"at": 5, "optimizer": {"lr": float("inf")}}], "phases.0.optimizer.lr: input should be a finite number"),
        ([{"at": 5, "data": {"path": "x"}}], "phases.0.data.path: cannot change within a run; what can: augment, imag"),
        ([{"at": 5, "start": {"freeze": ["x"]}}], "phases.0.start: freeze: 'x' is no part"),
        ([{"at": 5, "start": {"freeze_steps": 9}}], "phases.0.start.freeze_steps: cannot change within a run"),
        ([{"at": n, "head": {"scale": n}} for n in range(1, 102)], "phases: tuple should have at most 100 items"),
    ],
)
def test_a_phase_that_cannot_be_is_refused_with_its_key(recipe, phases, message):
    with pytest.raises(UserError, match=message):
        load(recipe, phases)


def test_a_head_that_is_not_there_does_not_change(recipe):
    with pytest.raises(UserError, match="head"):
        load(recipe, CHANGES, "head=null", "start={}")


def test_adamw_has_one_list_of_parts_that_stand_still(recipe):
    load(recipe, [{"at": 5, "start": {"freeze": ["norms"]}}], "optimizer.name=adamw")
    with pytest.raises(UserError, match=r"phases.1.start.freeze: with optimizer.name=adamw the same parts"):
        load(recipe, CHANGES, "optimizer.name=adamw")
