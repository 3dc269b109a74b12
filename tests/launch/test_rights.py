"""Places that may not be written: a line names the place, and nothing half-written is left there."""

import os
import pickle
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.data.sets import encode, make_set, picture
from tests.embed.models import SIZE, write_model, write_photos
from tests.launch.recipes import headcount_here, write_recipe
from tests.sets import write_set
from tests.single import trainer


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    root = tmp_path_factory.mktemp("material")
    write_set(root / "set", classes=4, views=3, size=32)
    make_set(root / "aligned", [4], num_classes=2, size=SIZE)
    write_photos(root / "photos", people=2, each=2)
    write_model(root / "m.onnx")
    shots = [encode(picture(n, SIZE)) for n in range(80)]
    (root / "s.bin").write_bytes(pickle.dumps((shots, [n % 2 == 0 for n in range(40)])))
    sizes = {"train__steps": 1, "train__global_batch_size": 4, "train__micro_batch_size": 4}
    run = trainer(root, root / "set", checkpoint__every_steps=1, **sizes)
    run.fit()
    run.close()
    assert headcount_here("embed", root / "m.onnx", root / "photos", root / "e.parquet").returncode == 0
    return root


@pytest.fixture
def read_only(tmp_path):
    """A file system that is mounted read-only; root, as which tests run, may write anywhere else."""
    place = tmp_path / "read-only"
    place.mkdir()
    if os.geteuid() != 0 or not shutil.which("mount"):
        place.chmod(0o555)
        yield place
        place.chmod(0o755)
        return
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", place], check=False).returncode:
        pytest.skip("no right to mount")
    yield place
    subprocess.run(["umount", place], check=True)


def _train(material: Path, place: Path) -> list:
    return ["train", write_recipe(material / "r.yaml", material / "set", place / "run", train__steps=1)]


def _eval(material: Path, place: Path) -> list:
    return ["eval", material / "m.onnx", "--sets", material / "s.bin", "--json", place / "figures.json"]


COMMANDS = {
    "eval": _eval,
    "export": lambda material, place: ["export", material / "run", "--output", place / "m.onnx"],
    "train": _train,
    "prep align": lambda material, place: ["prep", "align", material / "photos", place / "out", "--keep"],
    "embed": lambda material, place: ["embed", material / "m.onnx", material / "photos", place / "e.parquet"],
    "search build": lambda material, place: ["search", "build", material / "e.parquet", place / "gallery"],
    "data inspect": lambda material, place: ["data", "inspect", material / "aligned", "--sheet", place / "s.png"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_place_that_may_not_be_written_is_named_in_one_line(material, read_only, command):
    done = headcount_here(*COMMANDS[command](material, read_only))
    assert done.returncode in (1, 2)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(("error: ", "failed: "))
    assert str(read_only) in last
    assert "Traceback" not in done.stderr
    assert not list(read_only.iterdir())


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_in_place_of_a_directory_is_named_in_one_line(material, tmp_path, command):
    place = tmp_path / "file"
    place.write_text("x")
    done = headcount_here(*COMMANDS[command](material, place))
    assert done.returncode in (1, 2)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(("error: ", "failed: "))
    assert str(place) in last
    assert "Traceback" not in done.stderr
    assert place.read_text() == "x"
