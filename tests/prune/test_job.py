"""`headcount prune` on a small trained run: what every other command takes comes out."""

import json
import shutil
import sys

import pytest
import torch
import yaml

from dist_train.checkpoint.load import load_backbone
from dist_train.checkpoint.rows import StoredTable
from dist_train.checkpoint.store import committed_checkpoints, damage
from dist_train.evaluate.models import load_model
from dist_train.run_files import CONFIG_NAME
from dist_train.start.centers import ExportedCenters
from launch.cli import run
from tests.sets import write_set
from tests.single import losses, trainer
from tests.start.runs import write_names

SIZE, CLASSES = 32, 10


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A set of shards, and a run of a few steps with a moving average."""
    root = tmp_path_factory.mktemp("prune")
    write_set(root / "set", classes=CLASSES, views=8, size=SIZE)
    work = trainer(root, root / "set", train__ema_decay=0.5)
    losses(work, 4)
    work.save()
    work.checkpointer.wait()
    work.close()
    for folder in ("set", "run"):
        write_names(root / folder, [f"name {label}" for label in range(CLASSES)])
    return root


@pytest.fixture
def command(monkeypatch, capsys, place):
    """Call `headcount` in that folder: exit status, standard output, standard error."""
    monkeypatch.chdir(place)
    monkeypatch.setattr("logging.basicConfig", lambda **_: None)

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["headcount", *map(str, words)])
        status = run()
        captured = capsys.readouterr()
        return status, captured.out, " ".join(captured.err.split())

    return call


def outputs(path):
    pictures = torch.rand(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3)) * 2 - 1
    with torch.inference_mode():
        return load_backbone(path)[0](pictures)


def test_a_shorter_embedding_is_a_part_of_the_longer_one_and_so_are_its_centers(command, place, tmp_path):
    out = tmp_path / "short"
    status, said, err = command("prune", "run", out, "--keep", 0.75)
    assert status == 0, err
    whole, part = outputs(place / "run"), outputs(out)
    kept = [int((whole - column[:, None]).abs().sum(0).argmin()) for column in part.T]
    assert kept == sorted(set(kept))
    assert len(kept) == round(0.75 * whole.shape[1])
    torch.testing.assert_close(part, whole[:, kept])
    (checkpoint,) = committed_checkpoints(out)
    assert damage(checkpoint) == []
    rows = torch.arange(CLASSES).numpy()
    centers = StoredTable(committed_checkpoints(place / "run")[-1], "head.centers").take(rows)
    assert torch.equal(ExportedCenters(out / "pruned.centers.safetensors").take(rows), centers[:, kept])
    figures = json.loads((out / "prune.json").read_text())
    assert figures["after"]["embedding_dim"] == len(kept)
    assert f"{figures['after']['parameters']:,}" in said


def test_fewer_channels_train_on_from_the_pruned_and_are_embedded_and_exported(command, place, tmp_path):
    out, again, tuned = tmp_path / "narrow", tmp_path / "narrower", tmp_path / "tuned"
    first_order = ("--by", "first-order", "--set", "set", "--images", 16)
    assert command("prune", "run", out, "--scope", "channels", "--keep", 0.5, *first_order)[0] == 0
    figures = json.loads((out / "prune.json").read_text())
    assert figures["after"]["flops"] < 0.5 * figures["before"]["flops"]
    status, _, err = command("export", out, "--check-images", 8)
    assert status == 0, err
    exported = load_model(out / "model.onnx", torch.device("cpu"))
    assert load_model(out, torch.device("cpu")).digest() == exported.exported_from()
    # What was pruned is pruned once more, and its embedding shortened.
    assert command("prune", out, again, "--scope", "channels", "--keep", 0.5)[0] == 0
    assert command("prune", again, tmp_path / "last", "--keep", 0.5)[0] == 0
    assert outputs(tmp_path / "last").shape[1] == outputs(out).shape[1] // 2
    words = (f"run_dir={tuned}", f"start.backbone={again}", "start.head=run", "objectives.distill={teacher: run}")
    status, _, err = command("train", again / CONFIG_NAME, *words, "train.steps=1")
    assert status == 0, err
    assert outputs(tuned).shape == outputs(again).shape


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nothing", "out"), "no checkpoint found"),
        (("run", "set"), "set: exists already"),
        (("run", "out", "--keep", "0.99"), "leaves all; take a smaller one"),
        (("run", "out", "--keep", "0.01"), "expected 2 or more"),
        (("run", "out", "--scope", "channels", "--multiple", "256"), "nothing would be left out"),
        (
            ("run", "out", "--scope", "channels", "--keep", "0.3", "--multiple", "1"),
            "of 16 channels, expected 8 or more at 32 px",
        ),
        (("run", "out", "--by", "first-order"), "--set SET"),
        (("run", "out", "--set", "set"), "only --by first-order looks at pictures"),
        (("run", "out", "--by", "first-order", "--set", "nothing"), "nothing"),
        (("run", "out", "--by", "batchnorm"), "no trained scale"),
        (("run", "out", "--keep", "1.5"), "less than or equal to 0.99"),
    ],
)
def test_what_cannot_be_pruned_is_refused_and_nothing_is_written(command, place, words, said):
    status, _, err = command("prune", *words)
    assert status == 2
    assert said in err
    assert not (place / "out").exists()


def test_widths_that_were_tampered_with_are_refused_by_whoever_loads_the_run(command, place, tmp_path):
    out = tmp_path / "narrow"
    assert command("prune", "run", out, "--scope", "channels", "--keep", 0.5)[0] == 0
    recipe = yaml.safe_load((out / CONFIG_NAME).read_text())
    name = next(iter(recipe["backbone"]["channels"]))
    for width, said in (
        ([3, 4], "do not fit one another"),
        ([3, 10**9], "less than or equal to"),
        (None, "another architecture"),
    ):
        changed = shutil.copytree(out, tmp_path / f"changed {width}")
        body = json.loads(json.dumps(recipe))
        body["backbone"]["channels"] = body["backbone"]["channels"] | {name: width} if width else None
        (changed / CONFIG_NAME).write_text(yaml.safe_dump(body))
        status, _, err = command("export", changed)
        assert (status, said in err) == (2, True), err
