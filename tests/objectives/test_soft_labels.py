"""Soft labels over classes that are split over ranks, against the float64 formula: value, embeddings, centers."""

import numpy as np
import pytest
import torch
from torch.nn.functional import log_softmax, normalize

from dist_train.errors import UserError
from dist_train.head import Head
from dist_train.head.config import HeadConfig
from dist_train.objectives.soft_labels import SoftLabels, check_heads
from tests.ranks import ranks_here, run_ranks

CLASSES, SAMPLES = 10, 12  # 4 + 4 + 2 classes on three ranks
DIM, TEACHER_DIM = 5, 7
SCALE, TEACHER_SCALE, TEMPERATURE = 12.0, 20.0, 3.0
LR = 0.5


def build(config, dim, rank, world_size):
    group = ranks_here(rank, world_size).group
    where = {"group": group, "rank": rank, "world_size": world_size, "device": torch.device("cpu")}
    return Head(config, CLASSES, dim, **where, seed=3)


def two_micro_batches(rank, world_size, settings, weight):
    """The centers before and after a step of two micro-batches, and what was computed on the way."""
    student = build(
        HeadConfig(scale=SCALE, momentum=0.0, weight_decay=0.0, block_rows=2, **settings), DIM, rank, world_size
    )
    teacher = build(HeadConfig(scale=TEACHER_SCALE), TEACHER_DIM, rank, world_size)
    labels = SoftLabels(student, teacher, TEMPERATURE)
    found = {"before": student.class_centers().numpy().copy(), "taught": teacher.class_centers().numpy(), "micro": []}
    mine = slice(rank * SAMPLES // world_size, (rank + 1) * SAMPLES // world_size)
    for micro in range(2):
        generator = torch.Generator().manual_seed(micro)
        every = torch.randn(SAMPLES, DIM, generator=generator)
        hints = torch.randn(SAMPLES, TEACHER_DIM, generator=generator)
        targets = torch.randint(0, CLASSES, (SAMPLES,), generator=generator)
        embeddings = every[mine].clone().requires_grad_()
        alone = student(embeddings, targets[mine])
        chosen = student.pending.rows.classes
        own = np.arange(student.stop - student.start) if chosen is None else chosen
        if weight:
            value = labels(embeddings, hints)
            (gradient,) = torch.autograd.grad(value, embeddings, retain_graph=True)
            student.pending.further.clear()
            (alone / 2 + weight * value / 2).backward()
            found["micro"].append((float(value.detach()), gradient.numpy(), own + student.start))
        else:
            (alone / 2).backward()
    student.step(LR)
    found["after"] = student.class_centers().numpy().copy()
    return found


def divergence(embeddings, centers, hints, taught, chosen):
    unit = normalize
    own = log_softmax(SCALE / TEMPERATURE * unit(embeddings) @ unit(centers[chosen]).T, dim=1)
    theirs = log_softmax(TEACHER_SCALE / TEMPERATURE * unit(hints) @ unit(taught[chosen]).T, dim=1)
    return TEMPERATURE**2 * (theirs.exp() * (theirs - own)).sum(dim=1).mean()


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("settings", [{}, {"sample_rate": 0.5}, {"sample_rate": 0.5, "storage": "host"}])
def test_value_and_gradients_of_embeddings_and_centers_are_those_of_the_formula_on_any_number_of_ranks(
    world_size, settings
):
    weight = 0.7
    with_term, alone = (
        run_ranks(world_size, two_micro_batches, settings, each)
        if world_size > 1
        else [two_micro_batches(0, 1, settings, each)]
        for each in (weight, 0.0)
    )
    before, taught = (np.concatenate([found[name] for found in with_term]) for name in ("before", "taught"))
    centers, taught = torch.from_numpy(before).double().requires_grad_(), torch.from_numpy(taught).double()
    total = torch.zeros((), dtype=torch.float64)
    for micro in range(2):
        generator = torch.Generator().manual_seed(micro)
        embeddings = torch.randn(SAMPLES, DIM, generator=generator).double().requires_grad_()
        hints = torch.randn(SAMPLES, TEACHER_DIM, generator=generator).double()
        chosen = np.concatenate([found["micro"][micro][2] for found in with_term])
        assert len(chosen) < CLASSES or not settings
        value = divergence(embeddings, centers, hints, taught, chosen)
        (expected,) = torch.autograd.grad(value, embeddings, retain_graph=True)
        total = total + weight * value / 2
        for found, own in zip(with_term, np.split(expected.numpy(), world_size), strict=True):
            np.testing.assert_allclose(found["micro"][micro][0], float(value.detach()), rtol=1e-5)
            np.testing.assert_allclose(found["micro"][micro][1], own, rtol=1e-4, atol=1e-6)
    (gradient,) = torch.autograd.grad(total, centers)
    assert float(gradient.abs().max()) > 1
    change = np.concatenate([one["after"] - other["after"] for one, other in zip(with_term, alone, strict=True)])
    np.testing.assert_allclose(change, -LR * gradient.numpy(), rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize(
    ("student", "said"),
    [
        (None, "head is null"),
        (HeadConfig(filter_eps=1e-4), "head.filter_eps drops classes"),
        (HeadConfig(centers_per_class=3), "head has margin arcface and centers_per_class=3"),
    ],
)
def test_heads_without_one_cosine_a_class_are_refused(student, said):
    with pytest.raises(UserError, match=said):
        check_heads("objectives.distill", student, HeadConfig())
