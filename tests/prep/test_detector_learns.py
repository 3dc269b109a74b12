"""A cascade trained by the command on drawn faces, in half a minute of one core, finds faces in other drawings."""

import json
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from typer.testing import CliRunner

from data_prep.cli import app
from data_prep.mtcnn.training.stage import NAMES, RUN_NAME, Stage
from data_prep.mtcnn.weights import read_networks
from tests.prep.test_train_detector import check_onnx

RECIPE = {
    "min_face_px": 20,
    "heldout": 0.15,
    "false_alarms": 1.0,
    "workers": 0,
    "threads": 1,
    "device": "cpu",
    "checkpoint_steps": 10_000,
    "pnet": {"steps": 200, "batch": 128, "lr": 8e-3, "warmup_steps": 10},
    "rnet": {"steps": 250, "batch": 64, "lr": 5e-3, "warmup_steps": 10},
    "onet": {"steps": 220, "batch": 32, "lr": 2e-3, "warmup_steps": 10, "crops": 28},
}


class Learnt(NamedTuple):
    """The detector of a training, and by network the losses at its beginning and at its end."""

    detector: Path
    losses: dict[str, tuple[dict[str, float], dict[str, float]]]


def command(*arguments: object) -> None:
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == 0, result.output


def draw(folder: Path, photos: int, seed: int) -> Path:
    command(
        *("drawn-faces", folder, "--photos", photos, "--seed", seed, "--workers", 1),
        *("--size", "160x120", "--min-face", 24, "--faces", 2),
    )
    return folder


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Learnt:
    home = tmp_path_factory.mktemp("learnt")
    recipe = RECIPE | {"out": str(home / "out"), "sets": [str(draw(home / "drawn", 150, 0))]}
    (home / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    losses = {}
    clean = Stage.clean

    def remember(stage: Stage) -> None:
        lines = (stage.directory / RUN_NAME / "metrics.jsonl").read_text().splitlines()
        rows = [row for row in map(json.loads, lines) if "loss/face" in row]
        losses[stage.name] = rows[0], rows[-1]
        clean(stage)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stage, "clean", remember)
        command("train-detector", home / "recipe.yaml", "--onnx")
    return Learnt(home / "out" / "detector.safetensors", losses)


def test_each_networks_losses_fall(learnt: Learnt) -> None:
    for name in NAMES:
        first, last = learnt.losses[name]
        assert last["loss"] < 0.5 * first["loss"], name  # 0.22 to 0.34 of it
        assert last["loss/face"] < 0.85 * first["loss/face"], name
        assert last["loss/points"] < 0.5 * first["loss/points"], name


def test_faces_in_other_drawings_are_found_with_their_points(learnt: Learnt, tmp_path: Path) -> None:
    """Trained, 70 % of 95 faces are found, 67 to 73 with other seeds, with points 12.6 % of the width off.

    With the easiest samples mined, or boxes turned round, 8 %; where mirrored crops have the boxes of plain ones 49 %;
    with the eyes of mirrored crops left in their places the points are 19.5 % off.
    """
    heldout, figures = draw(tmp_path / "heldout", 80, 1), tmp_path / "figures.json"
    command("eval-detector", heldout, "--detector", learnt.detector, "--json", figures)
    (found,) = json.loads(figures.read_text())
    assert found["recall_at_false_alarms_per_photo"]["1"] > 0.5
    assert found["points"]["mean"] < 0.16


def test_the_command_writes_the_same_networks_as_onnx_files(learnt: Learnt) -> None:
    paths = [learnt.detector.with_name(f"detector-{name}.onnx") for name in NAMES]
    check_onnx(paths, read_networks(learnt.detector))
