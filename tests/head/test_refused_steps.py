"""A step that is refused leaves nothing behind in the head: not in averages, not in the count of choices."""

import pytest
import torch

from dist_train.head import Head
from dist_train.head.config import HeadConfig


def make(margin, storage):
    config = HeadConfig(margin=margin, sample_rate=0.5, storage=storage)
    return Head(config, 40, 8, group=None, rank=0, world_size=1, device=torch.device("cpu"), seed=3)


def batch(number):
    generator = torch.Generator().manual_seed(number)
    return torch.randn(6, 8, generator=generator).requires_grad_(), torch.randint(0, 40, (6,), generator=generator)


def forward(head, number, prefetch):
    embeddings, labels = batch(number)
    if prefetch:
        head.prepare(labels)
    head(embeddings, labels).backward()
    return embeddings.grad.clone()


def state(head):
    return {name: value.clone() for name, value in head.state_dict().items()}


@pytest.mark.parametrize("margin", ["arcface", "curricularface", "adaface"])
@pytest.mark.parametrize(("storage", "prefetch"), [("device", False), ("host", False), ("host", True)])
def test_a_refused_step_leaves_averages_and_choices_as_they_were(margin, storage, prefetch):
    head = make(margin, storage)
    forward(head, 0, prefetch)
    head.step(0.1)
    before = state(head)
    forward(head, 1, prefetch)
    forward(head, 2, prefetch)  # a second micro-batch
    moved = [name for name, value in state(head).items() if not torch.equal(value, before[name])]
    assert "choices" in moved, "else this test shows nothing"
    if margin != "arcface":
        assert any(name.startswith("margin.") for name in moved)
    if prefetch:
        head.prepare(batch(5)[1])  # its embeddings were not finite, so it is not used
    head.zero_grad()
    for name, value in state(head).items():
        assert torch.equal(value, before[name]), name
    # What follows is what would have followed without the refused step.
    after = forward(head, 3, prefetch)
    other = make(margin, storage)
    forward(other, 0, prefetch)
    other.step(0.1)
    assert torch.equal(after, forward(other, 3, prefetch))
    head.close()
    other.close()


def test_a_step_that_went_through_is_not_taken_back_by_the_next_refusal():
    head = make("adaface", "device")
    forward(head, 0, False)
    head.step(0.1)
    kept = state(head)
    head.zero_grad()
    assert all(torch.equal(value, kept[name]) for name, value in state(head).items())
