"""A student's embeddings follow a teacher's: formulas on any number of ranks, whole runs, resumes."""

import hashlib

import numpy as np
import pytest
import torch

from dist_train.checkpoint.load import load_backbone
from dist_train.checkpoint.store import committed_checkpoints
from dist_train.config import load_config
from dist_train.data.batch import Batch
from dist_train.errors import NonFiniteError, UserError
from dist_train.objectives.config import DistillConfig
from dist_train.objectives.distill import Distill
from dist_train.objectives.gathering import Gathering
from dist_train.train.run import run
from tests.launch.recipes import write_recipe
from tests.ranks import ranks_here, run_ranks
from tests.sets import write_set
from tests.single import losses, trainer
from tests.start.runs import write_names

SAMPLES = 3  # of a rank
STUDENT, TEACHER = 4, 6  # lengths of embeddings
WEIGHTS = {"cosine": 0.5, "relations": 2.0}


class DrawnTeacher:
    """Embeddings drawn by the batch's first label; NaN where its pictures are."""

    digest = hashlib.sha256(b"drawn").hexdigest()

    def __init__(self, dim):
        self.embedding_dim = dim

    def __call__(self, batch):
        drawn = torch.Generator().manual_seed(1000 + int(batch.labels[0]))
        return torch.randn(len(batch.labels), self.embedding_dim, generator=drawn) + batch.images.sum()

    def figures(self):
        return {}

    def close(self):
        pass


def batch_of(number, value=0.0):
    labels = torch.full((SAMPLES,), number)
    return Batch(torch.full((SAMPLES, 3, 2, 2), value), labels, labels, labels, labels)


def two_micro_batches(rank, world_size, dim):
    """What a rank gives and gets in a step of two micro-batches."""
    ranks = ranks_here(rank, world_size)
    section = DistillConfig(teacher="T", **WEIGHTS)
    term = Distill(section, DrawnTeacher(dim), STUDENT, 1, Gathering(ranks), ranks)
    found = {"values": [], "student": [], "teacher": [], "gradients": []}
    projection = term.state_dict().get("projection")
    found["projection"] = None if projection is None else projection.numpy().copy()
    for micro in range(2):
        batch = batch_of(10 * micro + rank)
        student = torch.randn(SAMPLES, STUDENT, generator=torch.Generator().manual_seed(100 * micro + rank))
        student.requires_grad_()
        if not micro:
            term.prepare(batch)  # optional
        value = term(student, batch)
        (value / 2).backward()
        found["values"].append(float(value.detach()))
        found["student"].append(student.detach().numpy())
        found["teacher"].append(DrawnTeacher(dim)(batch).numpy())
        found["gradients"].append(student.grad.numpy())
    term.step(0.1, measure=False)
    found["moved"] = None if projection is None else term.state_dict()["projection"].numpy()
    return found


def formula(student, teacher, projection):
    """Value of both terms for [G, D] and [G, Dt], in float64."""
    seen = student if projection is None else student @ projection.T
    unit = torch.nn.functional.normalize
    cosine = (1 - torch.nn.functional.cosine_similarity(seen, teacher, eps=0)).mean()
    gaps = unit(student) @ unit(student).T - unit(teacher) @ unit(teacher).T
    return WEIGHTS["cosine"] * cosine + WEIGHTS["relations"] * gaps.square().mean()


@pytest.mark.parametrize(("world_size", "dim"), [(1, STUDENT), (1, TEACHER), (2, TEACHER), (3, STUDENT), (3, TEACHER)])
def test_values_gradients_and_projection_are_those_of_the_float64_formula_on_any_number_of_ranks(world_size, dim):
    several = world_size > 1
    ranks = run_ranks(world_size, two_micro_batches, dim) if several else [two_micro_batches(0, 1, dim)]
    start = ranks[0]["projection"]
    projection = None if start is None else torch.tensor(start.astype(np.float64), requires_grad=True)
    for micro in range(2):
        every, taught = (
            torch.tensor(np.concatenate([found[name][micro] for found in ranks]).astype(np.float64))
            for name in ("student", "teacher")
        )
        every.requires_grad_()
        value = formula(every, taught, projection)
        (value / 2).backward()
        for rank, found in enumerate(ranks):
            np.testing.assert_allclose(found["values"][micro], float(value.detach()), rtol=1e-5)
            own = every.grad.numpy()[SAMPLES * rank : SAMPLES * (rank + 1)]
            np.testing.assert_allclose(found["gradients"][micro], own, rtol=1e-4, atol=1e-7)
    if projection is not None:
        moved = (projection - 0.1 * projection.grad).detach().numpy()
        for found in ranks:
            np.testing.assert_allclose(found["moved"], moved, rtol=1e-5, atol=1e-6)
            np.testing.assert_array_equal(found["moved"], ranks[0]["moved"])


def refused(rank, world_size):
    ranks = ranks_here(rank, world_size)
    term = Distill(DistillConfig(teacher="T"), DrawnTeacher(TEACHER), STUDENT, 1, Gathering(ranks), ranks)
    with pytest.raises(NonFiniteError) as raised:
        term(torch.ones(SAMPLES, STUDENT, requires_grad=True), batch_of(rank, float("nan") if rank else 0.0))
    return str(raised.value)


def test_an_embedding_of_the_teacher_that_is_not_finite_is_refused_on_all_ranks():
    for said in run_ranks(2, refused):
        assert said.startswith("rank 1: the teacher's embedding 0 of the batch is not finite (3 of 6 over all ranks)")


@pytest.fixture(scope="module")
def tiny_set(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "set"
    write_set(path)
    write_names(path, [f"p{number}" for number in range(10)])
    return path


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, tiny_set):
    """A run of two steps whose embeddings have 24 numbers."""
    folder = tmp_path_factory.mktemp("teacher")
    options = {"train__steps": 2, "backbone__embedding_dim": 24}
    recipe = write_recipe(folder / "a.yaml", tiny_set, folder / "run", **options)
    assert run(load_config(recipe, ["seed=7"]), resume=False) == 0
    return folder / "run"


def student(folder, data, teacher, checkpoint=None, **more):
    folder.mkdir(exist_ok=True)
    objectives = (
        {} if teacher is None else {"objectives__distill": {"teacher": str(teacher), **more}, "head__sample_rate": 0.5}
    )
    return trainer(folder, data, checkpoint, **objectives)


def test_a_student_of_another_length_follows_a_run_and_the_teacher_moves_neither_its_weights_nor_a_random_number(
    tmp_path, tiny_set, teacher
):
    plain = student(tmp_path, tiny_set, None)
    start = {name: value.clone() for name, value in plain.program.backbone.state_dict().items()}
    draws = torch.get_rng_state()
    plain.close()
    made = student(tmp_path, tiny_set, teacher)
    assert torch.equal(torch.get_rng_state(), draws)
    assert all(torch.equal(value, start[name]) for name, value in made.program.backbone.state_dict().items())
    teaching, batch = made.program._further["distill"].objective._teacher, next(made.loader)
    before = teaching(batch)
    with torch.no_grad():
        expected = load_backbone(teacher)[0](batch.images)
    np.testing.assert_allclose(before, expected, atol=1e-4, err_msg="in evaluation mode")
    losses(made, 1)
    first = made.program.figures()["distill/cosine"]
    losses(made, 12)
    assert made.program.figures()["distill/cosine"] < first - 0.01
    assert torch.equal(teaching(batch), before)
    assert set(made.program.parts["distill"].state_dict()) == {"teacher", "projection", "momentum"}
    made.close()


def test_a_resumed_student_goes_on_bit_for_bit_and_refuses_another_teacher(tmp_path, tiny_set, teacher):
    terms = {"relations": 1.0, "soft_labels": 0.5}
    whole = student(tmp_path / "whole", tiny_set, teacher, **terms)
    expected = losses(whole, 6)
    weights = whole.program.backbone.state_dict()
    projection = whole.program.parts["distill"].state_dict()["projection"].clone()
    half = student(tmp_path / "half", tiny_set, teacher, **terms)
    losses(half, 3)
    half.save()
    half.checkpointer.wait()
    half.close()
    checkpoint = committed_checkpoints(tmp_path / "half" / "run")[-1]
    again = student(tmp_path / "half", tiny_set, teacher, checkpoint, **terms)
    assert losses(again, 3) == expected[3:]
    assert all(torch.equal(value, weights[name]) for name, value in again.program.backbone.state_dict().items())
    assert torch.equal(again.program.parts["distill"].state_dict()["projection"], projection)
    again.close()
    whole.close()
    part = half.program.parts["distill"]
    with pytest.raises(UserError, match="is another teacher than the one that this run began with"):
        part.load_state_dict(part.state_dict() | {"teacher": torch.zeros(32, dtype=torch.uint8)})
