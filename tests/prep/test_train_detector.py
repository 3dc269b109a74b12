"""A whole training of a detector: three networks in turn, killed, resumed, on several ranks; what its file is."""

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torch.distributed as dist
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from data_prep.mtcnn.cascade import Detector
from data_prep.mtcnn.onnx_files import export_networks
from data_prep.mtcnn.training.choice import wanted
from data_prep.mtcnn.training.config import DetectorRecipe, load_recipe
from data_prep.mtcnn.training.crops import Crops, read_part
from data_prep.mtcnn.training.job import _check, train_detector
from data_prep.mtcnn.training.losses import LANDMARK
from data_prep.mtcnn.training.photos import open_photos
from data_prep.mtcnn.training.stage import NAMES, Stage
from data_prep.mtcnn.training.targets import TargetTable
from data_prep.mtcnn.weights import Networks, open_networks, read_networks, write_networks
from dist_train.errors import UserError
from dist_train.runtime.ranks import ALONE
from dist_train.train.loop import Loop
from tests.docs.pages import ROOT
from tests.prep.plain_faces import plain_photo, write_plain_celeba, write_plain_set
from tests.ranks import ranks_here, run_ranks

STEPS = 6


class KilledError(BaseException):
    """Ends a process in its test, as a signal that nobody catches would."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_plain_set(tmp_path_factory.mktemp("faces"), 10, size=(90, 100))


def recipe_in(out: Path, photos: Path, **changes) -> DetectorRecipe:
    network = {"steps": STEPS, "batch": 12, "warmup_steps": 2, "crops": 21}
    given = {
        "out": out,
        "sets": [photos],
        "heldout": 0.2,
        "workers": 0,
        "threads": 1,
        "device": "cpu",
        "checkpoint_steps": 2,
        **{name: network for name in NAMES},
    }
    return DetectorRecipe.model_validate(given | changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> DetectorRecipe:
    recipe = recipe_in(tmp_path_factory.mktemp("unbroken") / "out", photos)
    assert train_detector(recipe) == 0
    return recipe


def test_a_trained_file_is_a_detector_with_its_recipe_and_its_own_thresholds(trained: DetectorRecipe) -> None:
    path = trained.out / "detector.safetensors"
    networks = read_networks(path)
    detector = Detector(weights=path)
    assert detector.thresholds == pytest.approx(networks.thresholds)
    assert detector.thresholds != Detector().thresholds
    detector.detect([plain_photo(np.random.default_rng(1), (60, 80), 1)[0]])
    with safe_open(path, "pt") as opened:
        about = opened.metadata()
    assert yaml.safe_load(about["recipe"]) == trained.model_dump(mode="json")
    assert len(about["sets"]) == 64
    assert sorted(each.name for each in trained.out.rglob("*") if each.is_file()) == sorted(
        [".lock", "detector.safetensors", "training.json", *["network.safetensors"] * 3]
    ), "crops and checkpoints of networks that are done are gone"


def test_a_training_killed_in_crops_and_in_steps_goes_on_bit_for_bit(
    trained: DetectorRecipe, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_in(tmp_path / "out", photos)
    make, step = Crops._make_part, Loop.train_step
    killed = []

    def make_and_die(self, number, pool):
        make(self, number, pool)
        if self._network not in killed:
            killed.append(self._network)
            (self.directory / "part-00000.json").unlink()  # killed just before it was noted
            raise KilledError

    def step_and_die(self, batch):
        if self.step == 3 and len(killed) % 2:
            killed.append("steps")
            raise KilledError
        return step(self, batch)

    monkeypatch.setattr(Crops, "_make_part", make_and_die)
    monkeypatch.setattr(Loop, "train_step", step_and_die)
    status = None
    while status is None:
        try:
            status = train_detector(recipe)
        except KilledError:
            continue
    assert status == 0
    assert killed == ["pnet", "steps", "rnet", "steps", "onet", "steps"]
    theirs, mine = (load_file(each.out / "detector.safetensors") for each in (trained, recipe))
    assert all(torch.equal(theirs[name], mine[name]) for name in theirs)
    assert read_networks(recipe.out / "detector.safetensors").thresholds == pytest.approx(
        read_networks(trained.out / "detector.safetensors").thresholds, rel=1e-12
    )


KILLED_IN_RNET = """
import os, signal, sys
from pathlib import Path
from data_prep.mtcnn.training.config import load_recipe
from data_prep.mtcnn.training.job import train_detector
from dist_train.train.loop import Loop
step, steps = Loop.train_step, []
def step_and_die(self, batch):
    steps.append(self.step)
    if steps.count(3) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch)
Loop.train_step = step_and_die
train_detector(load_recipe(Path(sys.argv[1]), []))
"""


def test_a_process_killed_in_its_steps_leaves_what_goes_on_bit_for_bit(
    trained: DetectorRecipe, photos: Path, tmp_path: Path
) -> None:
    recipe = recipe_in(tmp_path / "out", photos)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    killed = subprocess.run([sys.executable, "-c", KILLED_IN_RNET, path], cwd=ROOT, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert (recipe.out / "rnet" / "run" / "checkpoints").is_dir()
    assert train_detector(recipe) == 0
    theirs, mine = (load_file(each.out / "detector.safetensors") for each in (trained, recipe))
    assert all(torch.equal(theirs[name], mine[name]) for name in theirs)


def test_a_signal_ends_it_with_status_130_and_a_checkpoint_and_it_goes_on(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_in(tmp_path / "out", photos)
    step = Loop.train_step

    def asked(self, batch):
        signal.raise_signal(signal.SIGINT)
        return step(self, batch)

    monkeypatch.setattr(Loop, "train_step", asked)
    assert train_detector(recipe) == 130
    assert (recipe.out / "pnet" / "run" / "checkpoints" / "step-00000001").is_dir()
    monkeypatch.setattr(Crops, "make", lambda *_: pytest.fail("crops are made once"))
    monkeypatch.setattr(Crops, "_make_part", lambda *_: pytest.fail("a part is made once"))
    with pytest.raises(UserError, match=r"seed was 0, is 1.*out=PATH"):
        train_detector(recipe_in(tmp_path / "out", photos, seed=1))


def test_the_same_command_again_has_nothing_to_do(
    trained: DetectorRecipe, monkeypatch: pytest.MonkeyPatch, photos: Path
) -> None:
    monkeypatch.setattr(Stage, "run", lambda self: pytest.fail("nothing is trained"))
    assert train_detector(trained) == 0
    assert train_detector(recipe_in(trained.out, photos, workers=1)) == 0, "what changes no result may change"


def stage_on(rank: int, world_size: int, out: str, photos: str) -> dict[str, np.ndarray]:
    recipe = recipe_in(
        Path(out), Path(photos), heldout=0.4, pnet={"steps": 4, "batch": 12, "warmup_steps": 1, "crops": 7}
    )
    known = open_photos(recipe.sets, recipe.seed, recipe.heldout, recipe.most_heldout, recipe.min_face_px)
    known.training *= 22  # three parts, which the ranks share
    ranks = ranks_here(rank, world_size)
    if world_size > 1:  # checkpoints are written while training communicates
        ranks = replace(ranks, control_group=dist.new_group(), saving_group=dist.new_group())
    made = Stage("pnet", recipe.out / "pnet", recipe, known, {}, ranks).run()
    assert made is not None
    return {name: tensor.numpy() for name, tensor in made.network.state_dict().items()} | {
        "threshold": np.array(made.threshold)
    }


@pytest.fixture(scope="module")
def alone(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    out = tmp_path_factory.mktemp("alone")
    return out, stage_on(0, 1, str(out), str(photos))


@pytest.mark.parametrize("world_size", [2, 3])
def test_several_ranks_share_the_crops_and_train_the_network_that_one_does(
    world_size: int, photos: Path, tmp_path: Path, alone: tuple[Path, dict[str, np.ndarray]]
) -> None:
    shares = run_ranks(world_size, stage_on, str(tmp_path / "out"), str(photos))
    sums = [
        {path.relative_to(out): path.read_bytes() for path in out.rglob("part-*")}
        for out in (alone[0], tmp_path / "out")
    ]
    assert sums[0] == sums[1]
    for found in shares:
        for name, expected in alone[1].items():
            np.testing.assert_allclose(found[name], expected, rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state, about: state.pop("rnet.box.bias"), "lacks 'rnet.box.bias'; it is of another network"),
        (lambda state, about: state.update(extra=torch.zeros(1)), "besides what a detector has, 'extra'"),
        (
            lambda state, about: state.update({"onet.score.bias": torch.zeros(3)}),
            r"onet.score.bias is torch.float32 \[3\], expected torch.float32 \[2\]",
        ),
        (lambda state, about: state.update({"pnet.box.bias": torch.zeros(4).half()}), "pnet.box.bias is torch.float16"),
        (lambda state, about: state["pnet.box.bias"].fill_(float("nan")), "pnet.box.bias holds numbers that are not"),
        (lambda state, about: about.update(kind="headcount.backbone"), "kind 'headcount.backbone', expected headcount"),
        (lambda state, about: about.pop("kind"), "its header says kind None"),
        (lambda state, about: about.update(thresholds="[0.5, 2, 0.5]"), r"thresholds are no three numbers.*\[1\] is 2"),
        (lambda state, about: about.update(thresholds="[0.5"), "thresholds are no three numbers"),
        (lambda state, about: state.update(extra=torch.zeros(5 << 20)), "bytes, a detector's weights have at most"),
    ],
)
def test_another_file_of_weights_is_refused_by_name(tmp_path: Path, change, said: str) -> None:
    path = tmp_path / "other.safetensors"
    state = {name: tensor.clone() for name, tensor in open_networks().state_dict().items()}
    about = {"kind": "headcount.mtcnn", "thresholds": "[0.5, 0.6, 0.7]"}
    change(state, about)
    save_file(state, path, about)
    with pytest.raises(UserError, match=rf"^{path}: .*{said}"):
        Detector(weights=path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.safetensors", None, "No such file"),
        ("a.onnx", b"x", "expected the .safetensors of a detector"),
        ("a.safetensors", b"x" * 100, "header claims"),
    ],
)
def test_what_is_no_file_of_weights_is_refused(tmp_path: Path, name: str, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said):
        read_networks(tmp_path / name)


def test_networks_survive_their_file(tmp_path: Path) -> None:
    given = open_networks()._replace(thresholds=(0.25, 0.5, 0.75))
    write_networks(tmp_path / "a.safetensors", given, {"recipe": "x: 1"})
    found = read_networks(tmp_path / "a.safetensors")
    assert isinstance(found, Networks)
    assert found.thresholds == (0.25, 0.5, 0.75)
    assert all(map(torch.equal, found.state_dict().values(), given.state_dict().values()))


def test_recipes_and_sets_that_cannot_be_are_refused(photos: Path, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"out: {tmp_path / 'out'}\nsets: [{photos}]\npnet: {{steps: 50, warmup_steps: 60}}\n")
    with pytest.raises(UserError, match=r"recipe .*pnet.warmup_steps 60 is more than its 50 steps"):
        load_recipe(path, [])
    with pytest.raises(UserError, match=r"rnet\.stepz"):
        load_recipe(path, ["pnet.steps=100", "rnet.stepz=3"])
    lines = (photos / "faces.csv").read_text().splitlines()
    (tmp_path / "faces.csv").write_text("\n".join(",".join(line.split(",")[:5]) for line in lines))
    for picture in photos.glob("*.png"):
        (tmp_path / picture.name).write_bytes(picture.read_bytes())
    with pytest.raises(UserError, match="no face of 20 px or more with five points in 8 photos; O-Net learns points"):
        train_detector(recipe_in(tmp_path / "out", tmp_path))
    with pytest.raises(UserError, match=r"pnet.batch 12 is not a multiple of the 5 ranks"):
        _check(recipe_in(tmp_path / "out", photos), replace(ALONE, world_size=5))


def test_photos_that_cannot_be_read_are_passed_over_and_too_many_of_them_are_not(photos: Path, tmp_path: Path) -> None:
    for each in photos.iterdir():
        (tmp_path / each.name).write_bytes(each.read_bytes())
    known = open_photos([tmp_path], 0, 0.2, 500, 20)

    def crops(name: str) -> Crops:
        return Crops(tmp_path / name, "pnet", known, seed=0, crops=21, min_face_px=20, propose=None)

    (tmp_path / known[known.training[0]].name).write_bytes(b"no picture")
    assert crops("few").make(ALONE, lambda: False, 1)
    assert json.loads((tmp_path / "few" / "part-00000.json").read_text())["unread"] == 1
    for number in known.training[:6]:
        (tmp_path / known[number].name).write_bytes(b"no picture")
    with pytest.raises(Exception, match="6 of 8 photos cannot be read"):
        crops("most").make(ALONE, lambda: False, 1)


@pytest.mark.parametrize("network", ["pnet", "rnet"])
def test_photos_with_one_marked_face_give_landmark_faces_alone_and_are_not_held_out(
    photos: Path, tmp_path: Path, network: str
) -> None:
    celeba = write_plain_celeba(tmp_path / "celeba", 9, size=(90, 100))
    known = open_photos([photos, celeba], 0, 0.4, 500, 20)
    whole = [number for number in range(19) if known.marks_all(number)]
    assert whole == list(range(10)), "the table marks all faces"
    assert (len(known.heldout), sorted(known.heldout + known.training)) == (4, list(range(19)))
    assert set(known.heldout) < set(whole)
    found = np.array([[10.0, 10, 50, 50], [30, 20, 80, 70], [0, 0, 90, 90]])  # of which some show an unmarked face

    def made(name: str) -> list[int]:
        propose = None if network == "pnet" else lambda pictures: [found for _ in pictures]
        crops = Crops(tmp_path / name, network, known, seed=0, crops=21, min_face_px=20, propose=propose)
        assert crops.make(ALONE, lambda: False, 1)
        TargetTable(tmp_path / name, wanted(21))
        return [shard.samples for shard in read_part(tmp_path / name / "part-00000.json").shards]

    both = made("both")
    known.training = [number for number in known.training if number in whole]
    plain = made("plain")
    assert both[:LANDMARK] == plain[:LANDMARK]
    assert 40 < both[LANDMARK] - plain[LANDMARK] <= 9 * wanted(21)[LANDMARK]


def test_sets_that_mark_one_face_a_photo_are_not_learnt_from_alone(tmp_path: Path) -> None:
    celeba = write_plain_celeba(tmp_path, 3, size=(90, 100))
    with pytest.raises(UserError, match=r"list_bbox_celeba.txt: 0 photos in which all faces are marked.*WIDER FACE"):
        open_photos([celeba], 0, 0.4, 500, 20)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("detector_*.yaml")), ids=lambda path: path.stem)
def test_recipes_that_come_along_are_read(path: Path) -> None:
    recipe = load_recipe(path, ["pnet.steps=700"])
    assert recipe.pnet.steps == 700
    assert (recipe.hard_mining, recipe.onet.points_weight, recipe.rnet.points_weight) == (0.7, 1.0, 0.5)


def test_every_key_is_on_the_page() -> None:
    page = (ROOT / "docs" / "detector.md").read_text()
    keys = DetectorRecipe.model_fields.keys() | DetectorRecipe.model_fields["pnet"].annotation.model_fields.keys()
    assert [key for key in sorted(keys) if f"`{key}`" not in page] == []


def test_onnx_files_answer_as_the_networks_do(tmp_path: Path) -> None:
    networks = open_networks()
    paths = export_networks(networks, tmp_path / "own.safetensors")
    assert [path.name for path in paths] == [f"own-{name}.onnx" for name in NAMES]
    check_onnx(paths, networks)


def check_onnx(paths: Sequence[Path], networks: Networks) -> None:
    """See that the files of the three networks answer as these do."""
    for path, network, size in zip(paths, networks[:3], [(38, 52), (24, 24), (48, 48)], strict=True):
        pictures = torch.randn(3, 4, *size)
        with torch.no_grad():
            answers = network(pictures)
            if path.stem.endswith("pnet"):
                expected = [answers[0].sigmoid(), networks.pnet.box(answers[1])]
            else:
                expected = [(answers[0][:, 1] - answers[0][:, 0]).sigmoid(), *answers[1:]]
        found = onnxruntime.InferenceSession(path).run(None, {"images": pictures[:, :3].numpy()})
        for mine, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(mine, theirs.numpy(), atol=1e-4)
