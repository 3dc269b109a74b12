"""New embeddings that can be searched in an older run's galleries: the loss, whole runs, what files say of it."""

import json
import shutil

import numpy as np
import pytest
import torch

from dist_train.checkpoint.load import load_backbone
from dist_train.checkpoint.rows import StoredTable
from dist_train.checkpoint.store import committed_checkpoints
from dist_train.config import load_config
from dist_train.errors import UserError
from dist_train.evaluate.models import load_model
from dist_train.train.build import open_training
from dist_train.train.run import run
from launch.check import check
from tests.launch.recipes import headcount_here, write_recipe
from tests.ranks import ranks_here, run_ranks
from tests.sets import picture, write_set
from tests.single import ALONE, losses, trainer
from tests.start.runs import write_names

OLD, NEW = 4, 6  # identities: p0 .. p3, and p1 .. p6 of which p4 .. p6 are new
VIEWS = 8
WEIGHT = 0.5


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    for name, classes, first in (("old", OLD, 0), ("new", NEW, 1)):
        write_set(folder / name, classes=classes, views=VIEWS)
        write_names(folder / name, [f"p{number}" for number in range(first, first + classes)])
    return folder


@pytest.fixture(scope="module")
def old_run(tmp_path_factory, sets):
    folder = tmp_path_factory.mktemp("old")
    options = {"train__steps": 2, "train__global_batch_size": 24, "head__scale": 8.0, "head__m2": 0.3}
    recipe = write_recipe(folder / "a.yaml", sets / "old", folder / "run", **options)
    assert run(load_config(recipe, ["seed=7"]), resume=False) == 0
    return folder / "run"


def new_recipe(folder, sets, old_run, **more):
    options = {"train__global_batch_size": 24, "objectives__compatible_with": {"run": str(old_run), "weight": WEIGHT}}
    return write_recipe(folder / "b.yaml", sets / "new", folder / "run", **(options | more))


def old_centers(old_run):
    """Float64 [C, D] of the new set's identities, by the rules: the old run's rows, else means of its embeddings."""
    backbone, _, _ = load_backbone(old_run)
    table = StoredTable(committed_checkpoints(old_run)[-1], "head.centers")
    rows = table.take(np.arange(OLD)).double()
    centers = torch.zeros(NEW, rows.shape[1], dtype=torch.float64)
    for label in range(NEW):
        if label + 1 < OLD:
            centers[label] = rows[label + 1]
            continue
        pixels = np.stack([picture(label, view, 32)[:, :, ::-1].transpose(2, 0, 1) for view in range(VIEWS)])
        images = (torch.from_numpy(pixels.copy()).float() - 127.5) / 127.5
        with torch.no_grad():
            centers[label] = torch.nn.functional.normalize(backbone(images).double(), dim=1).sum(dim=0)
    return centers


def both_and_head(rank, world_size, recipe):
    config = load_config(recipe)
    config.run_dir.mkdir(exist_ok=True)
    loop = open_training(config, ranks_here(rank, world_size))
    batch = next(loop.loader)
    drawn = torch.randn(len(batch.labels), 16, generator=torch.Generator().manual_seed(rank))
    found = {"embeddings": drawn.numpy(), "labels": batch.host_labels.numpy()}
    for name, loss in (("both", loop.program.loss), ("head", loop.program.head)):
        embeddings = drawn.clone().requires_grad_()
        value = loss(embeddings, batch)
        value.backward()
        found[name] = (float(value.detach()), embeddings.grad.numpy())
    loop.close()
    return found


def arcface(embeddings, centers, labels):
    """The old run's loss: scale 8, margin 0.3 radians."""
    unit = torch.nn.functional.normalize
    cosines = unit(embeddings, dim=1) @ unit(centers, dim=1).T
    own = torch.nn.functional.one_hot(labels, len(centers)).bool()
    logits = 8 * torch.where(own, torch.cos(cosines.clamp(-1, 1).acos() + 0.3), cosines)
    return torch.nn.functional.cross_entropy(logits, labels)


def test_pictures_without_a_label_have_no_share_in_the_term(tmp_path, sets, old_run):
    write_set(tmp_path / "target", classes=3)
    data = {"mix": [{"path": str(tmp_path / "target"), "weight": 1.0, "labelled": False}]}
    config = load_config(new_recipe(tmp_path, sets, old_run, **{f"data__{key}": value for key, value in data.items()}))
    config.run_dir.mkdir()
    loop = open_training(config, ALONE)
    batch = next(loop.loader)
    embeddings = torch.randn(len(batch.labels), 16).requires_grad_()
    loop.program.loss(embeddings, batch).backward()
    loop.close()
    unlabelled = batch.host_labels < 0
    assert 0 < unlabelled.sum() < len(unlabelled)
    assert not embeddings.grad[unlabelled].any()
    assert embeddings.grad[~unlabelled].any(dim=1).all()


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_term_is_the_old_runs_loss_with_old_centers_and_means_of_old_embeddings_on_any_number_of_ranks(
    tmp_path, sets, old_run, world_size
):
    recipe = new_recipe(tmp_path, sets, old_run, train__micro_batch_size=24 // world_size)
    several = world_size > 1
    ranks = run_ranks(world_size, both_and_head, recipe) if several else [both_and_head(0, 1, recipe)]
    every = np.concatenate([found["embeddings"] for found in ranks]).astype(np.float64)
    embeddings = torch.tensor(every, requires_grad=True)
    labels = torch.from_numpy(np.concatenate([found["labels"] for found in ranks]))
    value = WEIGHT * arcface(embeddings, old_centers(old_run), labels)
    value.backward()
    for found, own in zip(ranks, np.split(embeddings.grad.numpy(), world_size), strict=True):
        (both, both_gradient), (head, head_gradient) = found["both"], found["head"]
        np.testing.assert_allclose(both - head, float(value.detach()), rtol=1e-4)
        np.testing.assert_allclose(both_gradient - head_gradient, own, atol=2e-6)


def started(folder, sets, old_run, checkpoint=None):
    folder.mkdir(exist_ok=True)
    more = {"objectives__compatible_with": str(old_run), "head__sample_rate": 0.5, "train__global_batch_size": 24}
    return trainer(folder, sets / "new", checkpoint, **more)


def test_a_resumed_run_goes_on_bit_for_bit_without_old_centers_in_its_checkpoint_and_needs_the_old_run(
    tmp_path, sets, old_run
):
    old = tmp_path / "old"
    shutil.copytree(old_run, old)
    whole = started(tmp_path / "whole", sets, old)
    expected = losses(whole, 5)
    whole.close()
    half = started(tmp_path / "half", sets, old)
    losses(half, 2)
    assert set(half.program.parts["compatible_with"].state_dict()) == {"model", "choices"}
    half.save()
    half.checkpointer.wait()
    half.close()
    checkpoint = committed_checkpoints(tmp_path / "half" / "run")[-1]
    again = started(tmp_path / "half", sets, old, checkpoint)
    assert losses(again, 3) == expected[2:]
    part = again.program.parts["compatible_with"]
    with pytest.raises(UserError, match="its network is another one than when this run began"):
        part.load_state_dict(part.state_dict() | {"model": torch.zeros(32, dtype=torch.uint8)})
    again.close()
    shutil.rmtree(old)
    with pytest.raises(UserError, match=r"objectives\.compatible_with .*old: no such file or directory"):
        started(tmp_path / "half", sets, old, checkpoint)


def test_old_centers_are_those_at_the_old_runs_picture_size_in_whatever_phase_a_run_goes_on(tmp_path, sets, old_run):
    recipe = new_recipe(tmp_path, sets, old_run, backbone__name="nano", data__image_size=40, train__steps=2)
    config = load_config(recipe, ["phases=[{at: 1, data: {image_size: 48}}]"])
    config.run_dir.mkdir()
    unit, expected = torch.nn.functional.normalize, old_centers(old_run)
    checkpoint, found = None, []
    for size in (40, 48):
        loop = open_training(config, ALONE, checkpoint)
        assert loop.loader.image_size == size
        found.append(loop.program.parts["compatible_with"]._head.tables()["centers"].clone())
        if checkpoint is None:
            losses(loop, 1)
            loop.save()
            loop.checkpointer.wait()
        loop.close()
        (checkpoint,) = committed_checkpoints(config.run_dir)
    assert torch.equal(*found)
    torch.testing.assert_close(unit(found[0].double(), dim=1), unit(expected, dim=1), atol=1e-5, rtol=0)


def test_a_new_model_searches_the_old_models_gallery_in_every_form_and_no_other_model_does(
    tmp_path, sets, old_run, capsys
):
    new = tmp_path / "run"
    recipe = new_recipe(tmp_path, sets, old_run, train__steps=1, export__onnx=True)
    check(load_config(recipe))
    said = capsys.readouterr().out
    assert "run: identities that it knows 3, new to it 3, gone 1" in said
    assert "left out: compatible_with" in said
    assert run(load_config(recipe), resume=False) == 0
    old_digest = load_model(old_run, ALONE.device).digest()
    by_run, by_file = (load_model(path, ALONE.device) for path in (new, new / "model.onnx"))
    assert by_file.exported_from() == by_run.digest(), "so that figures of the run hold for its file"
    assert json.loads((new / "summary.json").read_text())["compatible_with"] == old_digest
    exported = tmp_path / "new.safetensors"
    done = headcount_here("checkpoint", "export", new, "--output", exported)
    assert done.returncode == 0, done.stderr
    assert old_digest in exported.with_suffix(".md").read_text()
    gallery, photo = tmp_path / "gallery", tmp_path / "photo.png"
    done = headcount_here("embed", old_run, sets / "old", tmp_path / "old.parquet", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert headcount_here("search", "build", tmp_path / "old.parquet", gallery).returncode == 0
    import cv2

    cv2.imwrite(str(photo), picture(2, 3, 32))

    def query(model, where):
        options = ("--model", model, "--no-align", "--device", "cpu", "--out", tmp_path / "matches.png")
        return headcount_here("search", "query", where, photo, *options)

    for model in (new, exported, new / "model.onnx"):
        done = query(model, gallery)
        assert done.returncode == 0, done.stderr
        assert "was trained to be compatible with the gallery's" in done.stdout
    done = headcount_here("embed", new, sets / "old", tmp_path / "new.parquet", "--device", "cpu")
    assert headcount_here("search", "build", tmp_path / "new.parquet", tmp_path / "gallery2").returncode == 0
    done = query(old_run, tmp_path / "gallery2")  # it is the new one that learned to be compatible
    assert done.returncode == 2
    assert "their embeddings cannot be compared" in done.stderr


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("dim", r"objectives\.compatible_with .*run: its embeddings have 16 numbers, backbone\.embedding_dim is 8"),
        ("names", r"no identities\.parquet in it"),
        ("strangers", r"objectives\.compatible_with: .* have no identity in common"),
        ("itself", r"objectives\.compatible_with .* lies in the run's own run_dir"),
        ("file", r"objectives\.compatible_with .*: is a file, and the class centers of a run are needed"),
    ],
)
def test_an_old_run_that_does_not_fit_is_refused_with_the_key_and_the_way_out(tmp_path, sets, old_run, change, said):
    old, more = old_run, {}
    if change == "dim":
        more = {"backbone__embedding_dim": 8}
    if change in ("names", "strangers"):
        old = tmp_path / "copy"
        shutil.copytree(old_run, old)
        write_names(old, [f"q{number}" for number in range(OLD)])
        if change == "names":
            (old / "identities.parquet").unlink()
            config = old / "config.yaml"
            config.write_text(config.read_text().replace(str(sets / "old"), str(tmp_path / "gone")))
    if change == "itself":
        old = tmp_path / "run"
        old.mkdir()
    if change == "file":
        old = old_run / "config.yaml"
    config = load_config(new_recipe(tmp_path, sets, old, **more))
    config.run_dir.mkdir(exist_ok=True)
    with pytest.raises(UserError, match=said):
        open_training(config, ALONE)
