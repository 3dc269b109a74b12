"""Metric objectives against their formulas in float64, with gradients, on 1, 2 and 3 ranks."""

import itertools
import logging

import numpy as np
import pytest
import torch

from dist_train.errors import UserError
from dist_train.objectives import center, sample_to_sample, supcon, triplet
from dist_train.objectives.config import (
    CenterConfig,
    ObjectivesConfig,
    SampleToSampleConfig,
    SupConConfig,
    TripletConfig,
)
from dist_train.runtime.extras import EXTRAS
from tests.objectives.settings import CLASSES, WIDTH, batch_of, setting
from tests.ranks import run_ranks

SAMPLES = 7  # of a rank, two of them without a label; 3 ranks have 3, 3 and 1 of the classes
LR, ALPHA = 0.3, 0.4
TERMS = {
    "semi_hard": (triplet, TripletConfig(margin=0.5), None),
    "batch_hard": (triplet, TripletConfig(mining="batch_hard", margin=0.5), None),
    "supcon": (supcon, SupConConfig(temperature=0.2), None),
    "sample_to_sample": (sample_to_sample, SampleToSampleConfig(scale=8.0, margin=0.2), None),
    "own": (center, CenterConfig(alpha=ALPHA), None),
    "own_raw": (center, CenterConfig(alpha=ALPHA), {"margin": "softmax"}),
    "head": (center, CenterConfig(centers="head"), {}),
    "head_raw": (center, CenterConfig(centers="head"), {"margin": "softmax"}),
}


def drawn(step, rank):
    """Embeddings [B, D] and labels [B] of a rank in a step."""
    generator = np.random.default_rng([step, rank])
    labels = generator.integers(0, CLASSES, SAMPLES)
    labels[[1, 4]] = -1
    return generator.normal(size=(SAMPLES, WIDTH)).astype(np.float32), labels


def two_steps(rank, world_size):
    """Of every term: losses, gradients and figures of two steps, and its state after them."""
    torch.set_num_threads(1)
    found = {}
    for name, (module, section, head) in TERMS.items():
        term = module.build(section, setting(rank, world_size, head))
        steps = []
        for step in range(2):
            values, labels = drawn(step, rank)
            embeddings, batch = torch.from_numpy(values).requires_grad_(), batch_of(labels)
            term.prepare(batch)
            loss = term(embeddings, batch)
            (3 * loss).backward()  # the weight of the term
            steps.append((loss.item(), embeddings.grad.numpy() / 3, term.statistics()))
            term.step(LR, measure=False)
        state = term.state_dict() if hasattr(term, "state_dict") else {}
        local = {key: value.to_local() if hasattr(value, "to_local") else value for key, value in state.items()}
        found[name] = steps, {key: value.numpy().copy() for key, value in local.items()}
    return found


def unit(rows):
    return rows / rows.norm(dim=1, keepdim=True)


def pairs_of(labels):
    known = [place for place, label in enumerate(labels) if label >= 0]
    positives = {i: [j for j in known if j != i and labels[j] == labels[i]] for i in known}
    negatives = {i: [j for j in known if labels[j] != labels[i]] for i in known}
    return known, positives, negatives


def plain_triplet(embeddings, labels, hard, margin=0.5):
    rows = unit(embeddings)
    distance = (rows[:, None] - rows[None]).square().sum(dim=2)
    known, positives, negatives = pairs_of(labels)
    chosen = []
    for i in known:
        if hard and positives[i]:
            nearest = min(negatives[i], key=lambda n, i=i: float(distance[i, n]))
            chosen.append((i, max(positives[i], key=lambda p, i=i: float(distance[i, p])), nearest))
        for p in [] if hard else positives[i]:
            by_distance = sorted(negatives[i], key=lambda n, i=i: float(distance[i, n]))
            beyond = [n for n in by_distance if distance[i, n] > distance[i, p]]
            chosen.append((i, p, beyond[0] if beyond else by_distance[-1]))
    losses = torch.stack([(distance[i, p] - distance[i, n] + margin).clamp(min=0) for i, p, n in chosen])
    return losses.mean(), {"active": float((losses > 0).double().mean())}


def plain_supcon(embeddings, labels, temperature=0.2):
    rows = unit(embeddings)
    logits = rows @ rows.T / temperature
    known, positives, _ = pairs_of(labels)
    losses = []
    for i in known:
        others = torch.stack([logits[i, a] for a in known if a != i]).logsumexp(0)
        if positives[i]:
            losses.append(torch.stack([others - logits[i, p] for p in positives[i]]).mean())
    return torch.stack(losses).mean(), {}


def plain_sample_to_sample(embeddings, labels, bias, scale=8.0, margin=0.2):
    """With a bias that begins with this batch where it is None; the bias [] as a leaf too."""
    rows = unit(embeddings)
    cosines = rows @ rows.T
    known, positives, negatives = pairs_of(labels)
    anchors = [i for i in known if positives[i]]
    if bias is None:
        bias = torch.stack([(scale * cosines[i, negatives[i]]).logsumexp(0) for i in anchors]).mean()
    bias = bias.detach().requires_grad_()
    losses = []
    for i in anchors:
        pulls = [torch.log1p(torch.exp(bias - scale * (cosines[i, p] - margin))) for p in positives[i]]
        pushes = [torch.log1p(torch.exp(scale * cosines[i, n] - bias)) for n in negatives[i]]
        losses.append(torch.stack(pulls).mean() + torch.stack(pushes).sum())
    return torch.stack(losses).mean(), {"threshold": float(bias) / scale}, bias


def plain_center(embeddings, labels, centers, raw):
    rows = embeddings if raw else unit(embeddings)
    losses = []
    for row, label in zip(rows, labels, strict=True):
        if label >= 0 and centers[label].any():
            target = centers[label] if raw else centers[label] / centers[label].norm()
            losses.append((row - target).square().sum() / 2)
    return sum(losses, torch.zeros(())) / len(labels) + 0 * rows.sum(), {}


def moved(centers, embeddings, labels, raw):
    rows = (embeddings if raw else unit(embeddings)).detach()
    result = centers.clone()
    for label in {label for label in labels if label >= 0}:
        own = rows[[place for place, other in enumerate(labels) if other == label]]
        towards = (centers[label] - own).sum(dim=0) / (1 + len(own))
        result[label] = centers[label] - ALPHA * towards if centers[label].any() else own.mean(dim=0)
    return result


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_metric_term_has_the_loss_gradient_figures_and_state_of_its_formula_on_any_number_of_ranks(world_size):
    ranks = run_ranks(world_size, two_steps) if world_size > 1 else [two_steps(0, 1)]
    bias = None
    centers = {name: torch.zeros(CLASSES, WIDTH, dtype=torch.float64) for name in ("own", "own_raw")}
    for name in ("head", "head_raw"):
        head = setting(head=TERMS[name][2]).head
        centers[name] = head.class_centers().double()
    for step, name in itertools.product(range(2), TERMS):
        parts = [drawn(step, rank) for rank in range(world_size)]
        embeddings = torch.from_numpy(np.concatenate([rows for rows, _ in parts])).double().requires_grad_()
        labels = np.concatenate([labels for _, labels in parts]).tolist()
        if name in ("semi_hard", "batch_hard"):
            loss, figures = plain_triplet(embeddings, labels, name == "batch_hard")
        elif name == "supcon":
            loss, figures = plain_supcon(embeddings, labels)
        elif name == "sample_to_sample":
            loss, figures, leaf = plain_sample_to_sample(embeddings, labels, bias)
        else:
            loss, figures = plain_center(embeddings, labels, centers[name], name.endswith("raw"))
        loss.backward()
        if name == "sample_to_sample":
            bias = leaf.detach() - LR * 3 * leaf.grad
        if name.startswith("own"):
            centers[name] = moved(centers[name], embeddings, labels, name.endswith("raw"))
        gradients = np.split(embeddings.grad.numpy(), world_size)
        for found, gradient in zip(ranks, gradients, strict=True):
            value, own_gradient, statistics = found[name][0][step]
            np.testing.assert_allclose(value, float(loss), rtol=1e-5, atol=1e-7, err_msg=name)
            np.testing.assert_allclose(own_gradient, gradient, rtol=1e-4, atol=1e-6, err_msg=name)
            assert statistics.keys() == {"loss", *figures}
            for key, figure in figures.items():
                assert statistics[key] == pytest.approx(figure, rel=1e-5)
    for found in ranks:
        np.testing.assert_allclose(found["sample_to_sample"][1]["bias"], bias, rtol=1e-5)
    for name in ("own", "own_raw"):
        rows = np.concatenate([found[name][1]["centers"] for found in ranks])
        np.testing.assert_allclose(rows, centers[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["semi_hard", "batch_hard", "supcon", "sample_to_sample"])
def test_a_batch_without_a_pair_is_said_once_and_has_loss_0_and_a_gradient_of_zeros(name, caplog):
    module, section, _ = TERMS[name]
    term = module.build(section, setting())
    state = str(term.state_dict()) if name == "sample_to_sample" else None
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            embeddings = torch.randn(4, WIDTH, requires_grad=True)
            loss = term(embeddings, batch_of([0, 1, -1, -1]))
            loss.backward()
            assert float(loss) == 0
            assert not embeddings.grad.any()
            term.step(LR, measure=False)
    assert caplog.text.count("set data.images_per_class") == 1
    if state:
        assert str(term.state_dict()) == state


@pytest.mark.parametrize("name", ["semi_hard", "batch_hard", "supcon", "sample_to_sample", "own"])
def test_a_batch_of_one_identity_and_an_embedding_of_zeros_give_finite_numbers(name):
    module, section, _ = TERMS[name]
    for labels in ([2, 2, 2], [2, 2, 3]):
        term = module.build(section, setting())
        for _ in range(2):  # the second time there are centers
            embeddings = torch.randn(3, WIDTH)
            embeddings[0] = 0
            loss = term(embeddings.requires_grad_(), batch_of(labels))
            loss.backward()
            assert loss.isfinite()
            assert embeddings.grad.abs().max() < 100
            term.step(LR, measure=False)


@pytest.mark.parametrize("name", ["sample_to_sample", "own"])
def test_a_refused_step_leaves_no_trace_in_a_term_s_state(name):
    module, section, _ = TERMS[name]
    term = module.build(section, setting())
    for step in range(2):  # before the first step, and after it
        before = {key: value.clone() for key, value in term.state_dict().items()}
        values, labels = drawn(step, 0)
        term(torch.from_numpy(values).requires_grad_(), batch_of(labels)).backward()
        term.zero_grad()
        term.step(LR, measure=False)
        assert all(torch.equal(value, before[key]) for key, value in term.state_dict().items())
        term(torch.from_numpy(values).requires_grad_(), batch_of(labels)).backward()
        term.step(LR, measure=False)
        assert not all(torch.equal(value, before[key]) for key, value in term.state_dict().items())


def test_micro_batches_of_a_step_move_centers_as_one_batch_does():
    rows, labels = torch.randn(8, WIDTH), [0, 1, 0, 2, 0, 1, 1, 2]
    tables = []
    for parts in (1, 2):
        term = center.build(CenterConfig(), setting())
        for _ in range(2):
            for part in np.split(np.arange(8), parts):
                term(rows[part], batch_of(np.array(labels)[part]))
            term.step(LR, measure=False)
        tables.append(term.state_dict()["centers"].clone())
    torch.testing.assert_close(*tables)


def test_a_snapshot_of_centers_is_of_its_moment_while_training_goes_on():
    term = center.build(CenterConfig(), setting())
    for step in range(2):
        values, labels = drawn(step, 0)
        term(torch.from_numpy(values), batch_of(labels))
        if step:
            before, snapshot = term.state_dict()["centers"].clone(), term.snapshot()
        term.step(LR, measure=False)
    snapshot.fill()
    assert torch.equal(snapshot.state["centers"], before)
    assert not torch.equal(term.state_dict()["centers"], before)
    snapshot.close()


def test_semi_hard_triplets_are_the_same_in_pieces(monkeypatch):
    rows, labels = torch.nn.functional.normalize(torch.randn(20, WIDTH)), torch.arange(20) // 4
    whole = triplet.semi_hard_triplets(rows, labels)
    monkeypatch.setattr(triplet, "_MINED_AT_ONCE", 50)
    assert all(torch.equal(a, b) for a, b in zip(whole, triplet.semi_hard_triplets(rows, labels), strict=True))


@pytest.mark.parametrize("name", ["semi_hard", "supcon"])
def test_a_term_whose_library_is_not_installed_names_the_extra(name, monkeypatch):
    monkeypatch.setitem(EXTRAS, "metric", ("no_such_module",))
    module, section, _ = TERMS[name]
    with pytest.raises(UserError, match=r"objectives\..*: needs no_such_module.*pip install 'headcount\[metric\]'"):
        module.build(section, setting())


@pytest.mark.parametrize(("head", "said"), [(None, "head is null"), ({"centers_per_class": 2}, "is 2")])
def test_centers_of_a_head_that_has_not_one_a_class_are_refused(head, said):
    with pytest.raises(UserError, match=said):
        center.build(CenterConfig(centers="head"), setting(head=head))


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"supcon": {"temperature": 0}}, "greater than or equal to 0.001"),
        ({"triplet": None}, "write {} for its defaults"),
        ({"triplet": {"margin": -1}}, "greater than 0"),
        ({"triplet": {"mining": "hard"}}, "semi_hard"),
        ({"center": {"centers": "head", "alpha": 0.9}}, "remove alpha"),
    ],
)
def test_values_that_make_no_sense_are_refused(tree, said):
    with pytest.raises(ValueError, match=said):
        ObjectivesConfig.model_validate(tree)
