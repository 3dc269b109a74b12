"""What a backbone starts from: equal on all ranks, listed and refused where it does not fit."""

import logging
import shutil

import pytest
import torch
from safetensors.torch import save_file

from dist_train.backbones import build_backbone
from dist_train.checkpoint.load import load_backbone
from dist_train.checkpoint.store import committed_checkpoints
from dist_train.config import load_config
from dist_train.errors import UserError, WorkError
from dist_train.start.backbone import start_backbone
from tests.launch.recipes import headcount_here, write_recipe
from tests.ranks import ranks_here, run_ranks
from tests.sets import write_set
from tests.single import ALONE, losses, trainer

SIZE = 32


@pytest.fixture(scope="module")
def tiny_set(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "set"
    write_set(path, size=SIZE)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_set):
    """A run with a moving average and checkpoints at steps 2 and 4."""
    path = tmp_path_factory.mktemp("finished")
    options = {"train__steps": 4, "checkpoint__every_steps": 2, "train__ema_decay": 0.5}
    with torch.random.fork_rng():
        made = trainer(path, tiny_set, **options)
        assert made.fit()
        made.close()
    return path / "run"


def recipe(tmp_path, **overrides):
    path = write_recipe(tmp_path / "a.yaml", tmp_path / "set", tmp_path / "run", **overrides)
    return load_config(path)


def network_of(config, seed=0):
    torch.manual_seed(seed)
    return build_backbone(config.backbone, SIZE)


def started(tmp_path, source, **overrides):
    """A network by the recipe that starts from `source`."""
    config = recipe(tmp_path, start__backbone=str(source), **overrides)
    network = network_of(config)
    start_backbone(config, network, SIZE, ALONE)
    return network


def random_state(tmp_path, seed=1, **overrides):
    """Weights of the recipe's network, all of them random, statistics too."""
    state = network_of(recipe(tmp_path, **overrides), seed).state_dict()
    return {name: torch.rand_like(one) if one.is_floating_point() else one + 5 for name, one in state.items()}


def equal(network, state):
    found = network.state_dict()
    return found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)


def test_a_run_gives_the_moving_average_of_its_newest_sound_checkpoint(tmp_path, finished, caplog):
    shutil.copytree(finished, tmp_path / "other")
    newest = committed_checkpoints(tmp_path / "other")[-1]
    for source, expected in ((tmp_path / "other", newest), (finished / "checkpoints" / "step-00000002",) * 2):
        assert equal(started(tmp_path, source), load_backbone(expected)[0].state_dict())
    file = next(newest.glob("*.distcp"))
    file.write_bytes(file.read_bytes()[:-1])
    with caplog.at_level(logging.INFO):
        network = started(tmp_path, tmp_path / "other")
    assert equal(network, load_backbone(finished / "checkpoints" / "step-00000002")[0].state_dict())
    count = len(network.state_dict())
    assert f"step-00000002: {count} of {count} tensors, names of headcount" in caplog.text
    shutil.rmtree(committed_checkpoints(tmp_path / "other")[0])
    with pytest.raises(WorkError, match=r"start\.backbone .*/other: every checkpoint there is damaged"):
        started(tmp_path, tmp_path / "other")
    with pytest.raises(WorkError, match=rf"start\.backbone {newest}: is damaged: .*{file.name}"):
        started(tmp_path, newest)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_a_file_gives_its_weights_in_the_networks_number_format(tmp_path, suffix, dtype):
    state = {name: one.to(dtype) if one.is_floating_point() else one for name, one in random_state(tmp_path).items()}
    path = tmp_path / f"a{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save({"state_dict": state}, path)
    network = started(tmp_path, path)
    assert equal(network, {name: one.float() if one.is_floating_point() else one for name, one in state.items()})


def test_counts_of_batches_may_be_missing(tmp_path):
    state = {name: one for name, one in random_state(tmp_path).items() if "num_batches" not in name}
    torch.save(state, tmp_path / "a.pt")
    found = started(tmp_path, tmp_path / "a.pt").state_dict()
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_the_random_numbers_after_a_start_are_those_of_a_run_without(tmp_path, finished):
    network_of(recipe(tmp_path))
    expected = torch.rand(3)
    started(tmp_path, finished)
    assert torch.equal(torch.rand(3), expected)


def test_what_does_not_fit_is_listed_in_full_and_refused_or_left_out(tmp_path, caplog):
    state = random_state(tmp_path)
    del state["stem.1.bias"], state["stages.0.residual.0.running_var"]
    state |= {"head.weight": torch.ones(3, 16), "embed.3.bias": torch.ones(8), "stem.2.weight": torch.ones(16).int()}
    torch.save(state, tmp_path / "a.pt")
    listed = (
        "\n  missing (2):\n    stem.1.bias [16]\n    stages.0.residual.0.running_var [16]"
        "\n  unexpected (1):\n    head.weight [3, 16]"
        "\n  of another shape (2):\n    stem.2.weight torch.float32 torch.int32\n    embed.3.bias [16] [8]"
    )
    with pytest.raises(UserError, match=r"does not fit backbone\.name=tiny with embedding_dim=16 at 32 px") as caught:
        started(tmp_path, tmp_path / "a.pt")
    assert f"start.backbone {tmp_path / 'a.pt'} (names of headcount)" in str(caught.value)
    assert listed in str(caught.value)
    assert "start.allow_partial=true" in str(caught.value)
    network = started(tmp_path, tmp_path / "a.pt", start__allow_partial=True)
    assert listed in caplog.text
    found, random = network.state_dict(), network_of(recipe(tmp_path)).state_dict()
    assert torch.equal(found["stem.0.weight"], state["stem.0.weight"])
    assert torch.equal(found["embed.3.bias"], random["embed.3.bias"])


def test_a_bias_that_ends_the_weights_is_refused_with_the_key_that_takes_it(tmp_path):
    torch.save(random_state(tmp_path, backbone__embedding_norm="bias"), tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"(?s)embed\.4\.bias \[16\]\n.*\(backbone\.embedding_norm=bias has a place"):
        started(tmp_path, tmp_path / "a.pt")


def test_another_architecture_or_embedding_length_is_refused_with_what_was_expected(tmp_path, finished):
    with pytest.raises(UserError, match=r"does not fit backbone\.name=nano with embedding_dim=16 at 32 px"):
        started(tmp_path, finished, backbone__name="nano")
    with pytest.raises(UserError, match=r"embed\.3\.weight \[8, 256\] \[16, 256\]"):
        started(tmp_path, finished, backbone__embedding_dim=8)
    with pytest.raises(UserError, match=r"nothing in it fits backbone\.name=mobilefacenet"):
        started(tmp_path, finished, backbone__name="mobilefacenet", start__allow_partial=True)


def test_weights_that_are_not_finite_are_named_and_refused(tmp_path):
    state = random_state(tmp_path)
    state["stem.0.weight"][0, 0, 0, 0] = torch.nan
    state["embed.3.bias"] = torch.full((16,), 1e300, dtype=torch.float64)
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"a\.pt: 2 tensors hold NaN or infinity: stem\.0\.weight, embed\.3\.bias"):
        started(tmp_path, tmp_path / "a.pt", start__allow_partial=True)


def test_a_place_without_weights_is_refused_by_what_is_there(tmp_path, finished):
    with pytest.raises(UserError, match=r"start\.backbone .*gone: no such file or directory; give a run directory"):
        started(tmp_path, tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"start\.backbone .*empty: a directory without checkpoints"):
        started(tmp_path, tmp_path / "empty")
    (tmp_path / "a.pt").write_text("text")
    with pytest.raises(UserError, match=r"start\.backbone [^ ]*a\.pt: no file by torch\.save"):
        started(tmp_path, tmp_path / "a.pt")


def test_the_run_itself_is_refused_under_every_spelling(tmp_path, finished):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    spellings = ("run", "run/../run", "link", "link/checkpoints/step-00000002")
    for spelling in spellings:
        with pytest.raises(UserError, match=r"lies in the run's own run_dir .*; to go on with that run use --resume"):
            started(tmp_path, f"{tmp_path}/{spelling}")


def test_a_run_starts_from_weights_and_keeps_its_own_when_it_goes_on(tmp_path, tiny_set, finished, caplog):
    options = {"start__backbone": str(finished), "train__steps": 2, "train__ema_decay": 0.5}
    made = trainer(tmp_path, tiny_set, **options)
    expected = load_backbone(finished)[0].state_dict()
    assert equal(made.program.backbone, expected)
    assert equal(made.program.average.module, expected)
    made.close()
    caplog.set_level(logging.INFO, "dist_train")
    once = headcount_here("train", tmp_path / "recipe.yaml", "--resume")
    assert once.returncode == 0, once.stderr
    assert "has no checkpoint to go on from: start.backbone applies" in caplog.text
    assert "backbone started from" in caplog.text
    caplog.clear()
    again = headcount_here("train", tmp_path / "recipe.yaml", "--resume", "train.steps=3", "--allow-changes")
    assert again.returncode == 0, again.stderr
    assert "start.backbone is not read: the run's own checkpoint" in caplog.text
    assert "backbone started from" not in caplog.text


def test_a_check_tells_how_the_start_fits(tmp_path, tiny_set, finished):
    path = write_recipe(tmp_path / "a.yaml", tiny_set, tmp_path / "run", start__backbone=str(finished))
    done = headcount_here("train", path, "--check")
    assert done.returncode == 0, done.stderr
    assert "step-00000004, names of headcount" in done.stdout
    gone = headcount_here("train", path, "--check", f"start.backbone={tmp_path / 'gone'}")
    assert (gone.returncode, "gone: not there; a run does not start without it" in gone.stdout) == (0, True)
    wrong = headcount_here("train", path, "--check", "backbone.embedding_dim=8")
    assert wrong.returncode == 2
    assert "embed.3.weight [8, 256] [16, 256]" in wrong.stderr


def starts_of_a_rank(rank, world_size, tmp_path, data, strategies):
    """For each strategy the tensors that differ from the file's, and from those of rank 0 after a step."""
    ranks = ranks_here(rank, world_size)
    here = {name: getattr(ranks, name) for name in ("rank", "world_size", "group", "control_group", "saving_group")}
    expected = torch.load(tmp_path / "a.pt", weights_only=True)
    found = {}
    for strategy in strategies:
        directory = tmp_path / f"{strategy}-{world_size}-{rank}"
        directory.mkdir()
        options = {
            "train__strategy": strategy,
            "train__global_batch_size": 12,
            "train__micro_batch_size": None,
            "start__backbone": str(tmp_path / "a.pt"),
            "backbone__embedding_norm": "bias",
            "optimizer__clip_norm": 1.0,
        }
        made = trainer(directory, data, rank=here, **options)
        state = made.program.replica.backbone_state()
        different = [name for name, one in expected.items() if not torch.equal(state[name], one)]
        loss = losses(made, 1)[0]
        scale = made.program.replica.backbone_state()["embed.4.weight"]
        found[strategy] = (different, loss, bool((scale == expected["embed.4.weight"]).all()))
        made.close()
    return found | ({"other": refusals_of_a_rank(ranks, tmp_path)} if world_size == 2 else {})


def refusals_of_a_rank(ranks, tmp_path):
    """What a rank says where another one has another file, or none."""
    said = []
    for name in ("other.pt", "gone.pt"):
        source = tmp_path / ("a.pt" if ranks.rank == 0 else name)
        config = recipe(tmp_path / f"ddp-2-{ranks.rank}", start__backbone=str(source), backbone__embedding_norm="bias")
        try:
            start_backbone(config, network_of(config), SIZE, ranks)
        except (UserError, SystemExit) as error:
            said.append(str(error))
    return said


def test_all_ranks_start_equal_by_every_strategy(tmp_path, tiny_set):
    torch.save(random_state(tmp_path, backbone__embedding_norm="bias"), tmp_path / "a.pt")
    torch.save(random_state(tmp_path, seed=2, backbone__embedding_norm="bias"), tmp_path / "other.pt")
    alone = starts_of_a_rank(0, 1, tmp_path, tiny_set, ["ddp"])["ddp"]
    two = run_ranks(2, starts_of_a_rank, tmp_path, tiny_set, ["ddp", "zero1", "zero2", "zero3"])
    three = run_ranks(3, starts_of_a_rank, tmp_path, tiny_set, ["ddp"])
    other, gone = two[0].pop("other")
    assert other.endswith("other weights on rank 1 than on rank 0; put the same file on every machine")
    assert gone.startswith("rank 1: start.backbone ")
    assert two[1].pop("other") == ["2", "2"], "ends silently"
    for different, loss, scale_stands in [alone, *(each for rank in two + three for each in rank.values())]:
        assert (different, scale_stands) == ([], True)
        assert loss == pytest.approx(alone[1], rel=0.3)
