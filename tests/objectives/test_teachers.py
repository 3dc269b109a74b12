"""What can teach besides a run: ONNX files, stored embeddings; and what cannot, with the way out."""

import json
import pickle

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from dist_train.checkpoint.rows import StoredTable
from dist_train.checkpoint.store import committed_checkpoints
from dist_train.config import load_config
from dist_train.errors import UserError
from dist_train.evaluate.models import load_model
from dist_train.train.build import open_training
from dist_train.train.run import run
from launch.check import check
from tests.evaluate.models import write_color_model
from tests.launch.recipes import headcount_here, write_recipe
from tests.sets import write_set
from tests.single import ALONE, losses, trainer
from tests.start.runs import write_names


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A set, a run on it, and its embeddings in both forms."""
    home = tmp_path_factory.mktemp("teachers")
    write_set(home / "set")
    write_names(home / "set", [f"p{number}" for number in range(10)])
    recipe = write_recipe(home / "a.yaml", home / "set", home / "run", train__steps=1)
    assert run(load_config(recipe), resume=False) == 0
    for name in ("all.parquet", "all.npy"):
        done = headcount_here("embed", home / "run", home / "set", home / name, "--device", "cpu")
        assert done.returncode == 0, done.stderr
    return home


def student(tmp_path, folder, teacher, **more):
    data = {"data__cache_dir": str(tmp_path / "cache"), "data__augment": {"flip": True}}
    distill = {"teacher": str(teacher)} | more
    return trainer(tmp_path, folder / "set", objectives__distill=distill, **data)


@pytest.mark.parametrize("name", ["all.parquet", "all.npy"])
def test_stored_embeddings_are_found_by_the_place_of_the_sample(tmp_path, folder, name):
    made = student(tmp_path, folder, folder / name, relations=1.0)
    batch = next(made.loader)
    embed = load_model(folder / "run", torch.device("cpu")).embed
    with torch.no_grad():
        expected = embed(batch.images) + embed(batch.images.flip(3))  # as they were stored, however they are flipped
    found = made.program._further["distill"].objective._teacher(batch)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    losses(made, 1)
    assert made.program.figures()["distill/missing"] == 0
    made.close()


def test_samples_without_an_embedding_teach_nothing_are_counted_and_the_first_are_named(tmp_path, folder, caplog):
    table = pq.read_table(folder / "all.parquet")
    pq.write_table(table.slice(5), tmp_path / "some.parquet")  # the description goes with the schema
    made = student(tmp_path, folder, tmp_path / "some.parquet", relations=1.0)
    seen = [next(made.loader) for _ in range(2)]  # all 80 samples but those beyond the last batch
    term = made.program._further["distill"].objective
    zeros = sum(int((~term._teacher(batch).any(dim=1)).sum()) for batch in seen)
    assert zeros == made.program._further["distill"].objective._teacher.missing > 0
    assert "has no embedding of sample 0000" in caplog.text
    assert caplog.text.count("which teaches nothing") == min(3, zeros)
    loss = losses(made, 1)
    assert np.isfinite(loss).all()
    made.close()


def test_an_onnx_file_teaches_with_its_own_layout_of_axes(tmp_path, folder):
    model = write_color_model(tmp_path / "colors.onnx", size=32, dim=8)
    made = student(tmp_path, folder, model)
    batch = next(made.loader)
    found = made.program._further["distill"].objective._teacher(batch)
    np.testing.assert_allclose(found, load_model(model, torch.device("cpu")).embed(batch.images), atol=1e-6)
    losses(made, 1)
    made.close()


def spoiled(tmp_path, folder, kind):
    """A teacher that is none."""
    path = tmp_path / "teacher.parquet"
    table = pq.read_table(folder / "all.parquet")
    if kind == "pickle":
        path = tmp_path / "teacher.pt"
        path.write_bytes(pickle.dumps(print))
    elif kind == "itself":
        path = tmp_path / "run"
        path.mkdir()
    elif kind == "size":
        path = write_color_model(tmp_path / "colors.onnx", size=16)
    elif kind == "keys":
        names = [f"photo {number}.png" for number in range(len(table))]
        pq.write_table(table.set_column(0, table.schema.field("path"), [names]), path)
    elif kind == "strangers":
        names = [f"other.tar:{number}.png" for number in range(len(table))]
        table = table.set_column(0, table.schema.field("path"), [names])
        pq.write_table(table.set_column(1, table.schema.field("offset"), [list(range(len(table)))]), path)
    elif kind == "order":
        pq.write_table(table.take(list(range(len(table)))[::-1]), path)
    elif kind == "foreign":
        pq.write_table(table.replace_schema_metadata({}), path)
    return path


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("pickle", r"objectives\.distill\.teacher: .*teacher\.pt: expected a run directory"),
        ("itself", r"objectives\.distill\.teacher .* lies in the run's own run_dir"),
        ("size", r"takes pictures of 16 px, the student's have 32 px; give data\.image_size=16"),
        ("absent", r"objectives\.distill\.teacher .*: no such file or directory"),
        ("keys", r"row 0 is no picture in a tar, so that no sample's key is known; embed the training set itself"),
        ("strangers", r"with other\.tar, and the training set has tiny-000000\.tar, tiny-000001\.tar"),
        ("order", r"rows of tiny-000002\.tar do not follow each other"),
        ("foreign", r"not written by `headcount embed`"),
    ],
)
def test_a_teacher_that_is_none_is_refused_with_the_key_and_the_way_out(tmp_path, folder, kind, said):
    with pytest.raises(UserError, match=said):
        student(tmp_path, folder, spoiled(tmp_path, folder, kind))


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ((1.0, None), r"px, the student's have 48 px; give phases\.0\.data\.image_size=40, or another teacher"),
        ((1.0, (0.0, 3)), r"give phases\.0\.data\.image_size=40"),  # it fades out in the phase
        ((0.0, (1.0, 0)), r"give phases\.0\.data\.image_size=40"),
        ((1.0, (0.0, 0)), None),
        ((0.0, None), None),
    ],
)
def test_a_teacher_that_cannot_take_the_pictures_of_a_phase_is_refused_at_the_start_where_it_teaches_there(
    tmp_path, folder, weights, said
):
    before, after = weights
    phase = {"at": 2, "data": {"image_size": 48}}
    if after is not None:
        phase["objectives"] = {"distill": dict(zip(("weight", "warmup_steps"), after, strict=True))}
    last = {"at": 8, "data": {"image_size": 40}, "objectives": {"distill": {"weight": 0.5}}}
    options = {"backbone__name": "nano", "data__image_size": 40}
    teacher = write_color_model(tmp_path / "colors.onnx", size=40, dim=8)
    distill = {"teacher": str(teacher), "weight": before}
    path = write_recipe(tmp_path / "a.yaml", folder / "set", tmp_path / "run", objectives__distill=distill, **options)
    config = load_config(path, [f"phases={[phase, last]}"])
    (tmp_path / "run").mkdir()
    if said is not None:
        with pytest.raises(UserError, match=said):
            open_training(config, ALONE)
    else:
        open_training(config, ALONE).close()


def test_a_damaged_copy_of_stored_embeddings_is_refused(tmp_path, folder):
    student(tmp_path, folder, folder / "all.parquet").close()
    (tars,) = (tmp_path / "cache").rglob("tars.json")
    tars.write_text(json.dumps({"tiny-000000.tar": [0, 10**9]}))
    with pytest.raises(UserError, match=r"is damaged \(a range of rows that are not there\); remove it"):
        student(tmp_path, folder, folder / "all.parquet")


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"teacher": "T", "cosine": 0}, "cosine, relations and soft_labels are all 0"),
        ({"relations": 1}, "teacher: missing"),
    ],
)
def test_a_section_that_teaches_nothing_is_refused(tmp_path, folder, section, said):
    with pytest.raises(UserError, match=said):
        load_config(write_recipe(tmp_path / "a.yaml", folder / "set", tmp_path / "run", objectives__distill=section))


@pytest.mark.parametrize("freeze", [["head"], []])
def test_a_student_inherits_the_teachers_classifier_frozen_or_moving(tmp_path, folder, freeze):
    table = StoredTable(committed_checkpoints(folder / "run")[-1], "head.centers")
    made = trainer(tmp_path, folder / "set", start__head=str(folder / "run"), start__freeze=freeze)
    expected = table.take(np.arange(10))
    assert torch.equal(made.program.head.class_centers(), expected)
    losses(made, 2)
    assert torch.equal(made.program.head.class_centers(), expected) == bool(freeze)
    made.close()


def test_the_rows_of_a_teacher_of_another_length_cannot_be_inherited_and_the_way_out_is_named(tmp_path, folder):
    options = {"backbone__embedding_dim": 8, "start__head": str(folder / "run"), "start__freeze": ["head"]}
    config = load_config(write_recipe(tmp_path / "a.yaml", folder / "set", tmp_path / "run", **options))
    config.run_dir.mkdir()
    with pytest.raises(UserError, match=r"backbone\.embedding_dim is 16 there and 8 here.*objectives\.distill"):
        open_training(config, ALONE)


def test_a_check_looks_at_the_teacher_and_says_what_its_small_step_leaves_out(tmp_path, folder, capsys):
    def checked(**distill):
        options = {"backbone__embedding_dim": 8, "objectives__distill": distill}
        check(load_config(write_recipe(tmp_path / "a.yaml", folder / "set", tmp_path / "new", **options)))
        return capsys.readouterr().out

    said = checked(teacher=str(folder / "run"))
    assert "run: a network, 16 numbers, to which a learned projection leads from 8" in said
    assert "left out" not in said
    said = checked(teacher=str(folder / "all.parquet"))
    assert "all.parquet: 80 stored embeddings, 16 numbers" in said
    assert "left out: distill" in said
    assert "teacher nowhere: not there; a run does not start without it" in checked(teacher="nowhere")
