"""Leaving out rows without weight. Tier 1: one process."""

import pytest
import torch

from dist_train.head import Head, HeadConfig

CLASSES, DIM, BATCH = 600, 64, 8


def build(**settings) -> Head:
    config = HeadConfig(weight_decay=0.0, momentum=0.0, **settings)
    return Head(config, CLASSES, DIM, group=None, rank=0, world_size=1, device=torch.device("cpu"), seed=5)


def trained_batch(head: Head) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings near their centers, as a trained network's, of random classes."""
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(0, CLASSES, (BATCH,), generator=generator)
    return trained_embeddings(head, labels, generator), labels


def trained_embeddings(head: Head, labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    centers = head.class_centers().float()
    centers = centers[labels] if centers.ndim == 2 else centers[labels, 0]
    noise = torch.randn(BATCH, DIM, generator=generator)
    unit = torch.nn.functional.normalize(centers)
    return (20 * (unit + 0.6 * torch.nn.functional.normalize(noise))).requires_grad_()


def step(head: Head, keep_logits: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    embeddings, labels = trained_batch(head)
    if not keep_logits:
        head._softmax.budget = 4 * BATCH * 4
    before = head.class_centers().clone()
    head(embeddings, labels).backward()
    head.step(0.1)
    return embeddings.grad, head.class_centers() - before


@pytest.mark.parametrize("keep_logits", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"sample_rate": 0.5, "block_rows": 37},
        {"centers_per_class": 2, "block_rows": 100},
        {"margin": "curricularface"},
        {"storage": "host"},
    ],
)
def test_filtered_gradients_agree_with_the_full_ones(settings, keep_logits):
    full_grad, full_change = step(build(**settings), keep_logits)
    filtered = build(**settings, filter_eps=5e-10)
    grad, change = step(filtered, keep_logits)
    assert (grad - full_grad).norm() / full_grad.norm() < 1e-5
    assert (change - full_change).norm() / full_change.norm() < 1e-5
    shares = filtered.statistics()
    assert shares["classes_updated"] < 0.8 * shares["classes_sampled"]
    touched = (change.flatten(1) != 0).any(dim=1).float().mean()
    assert touched <= shares["classes_updated"] + 1e-6


def test_a_filter_that_drops_nothing_changes_nothing():
    full_grad, full_change = step(build())
    grad, change = step(build(filter_eps=1e-30))
    assert torch.allclose(grad, full_grad, rtol=1e-4, atol=1e-7)
    assert torch.allclose(change, full_change, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_filtered_micro_batches_on_distant_classes_agree_with_the_full_ones(order):
    changes = []
    for settings in ({}, {"filter_eps": 1e-6}):
        head = build(block_rows=10, **settings)
        before = head.class_centers().clone()
        for number in order:  # a micro-batch of the first classes, one of the last
            labels = torch.arange(BATCH) + number * (CLASSES - BATCH)
            head(trained_embeddings(head, labels, torch.Generator().manual_seed(number)), labels).backward()
        kept = [step.rows.lease.count for step in head._loss.micro_batches]
        head.step(0.1)
        changes.append(head.class_centers() - before)
    assert max(kept) < CLASSES, "else nothing was filtered and this test shows nothing"
    assert (changes[1] - changes[0]).norm() / changes[0].norm() < 1e-3
