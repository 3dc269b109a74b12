"""A head whose margin, scale and sampling rate change between steps, as phases of a run ask."""

import torch

from dist_train.head import Head, HeadConfig

CLASSES, DIM = 12, 6


def build(config, later=()):
    cpu = torch.device("cpu")
    return Head(config, CLASSES, DIM, group=None, rank=0, world_size=1, device=cpu, seed=3, later=later)


def batch(seed):
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(8, DIM, generator=generator).requires_grad_()
    return embeddings, torch.randint(0, CLASSES, (8,), generator=generator)


def train(head, seed):
    embeddings, labels = batch(seed)
    loss = head(embeddings, labels)
    loss.backward()
    head.step(0.1)
    return float(loss.detach()), embeddings.grad


def test_a_changed_head_does_as_one_that_was_built_so():
    first = HeadConfig(sample_rate=0.3, margin="cosface", scale=16.0)
    second = HeadConfig(margin="combined", m2=0.3, scale=8.0, interclass_threshold=0.4, filter_eps=1e-4, lr_scale=2.0)
    changed, built = build(first, [first, second]), build(second)
    train(changed, 1)
    for name, table in built.tables().items():
        table.copy_(changed.tables()[name])
    changed.change(second)
    for seed in (2, 3):
        (loss, gradient), (expected, expected_gradient) = train(changed, seed), train(built, seed)
        assert loss == expected
        assert torch.equal(gradient, expected_gradient)
    assert changed.statistics()["classes_sampled"] == 1
    for name, table in built.tables().items():
        assert torch.equal(table, changed.tables()[name])


def test_averages_of_every_margin_are_kept_and_the_state_has_the_same_names_throughout():
    every = [
        HeadConfig(margin=name, scale=scale) for name, scale in (("adaface", 8), ("curricularface", 8), ("adaface", 9))
    ]
    head = build(every[0], every)
    names = set(head.state_dict())
    assert {"margin.norm_mean", "margin.norm_deviation", "margin.t"} <= names
    train(head, 1)
    seen = head.state_dict()["margin.norm_mean"].clone()
    assert seen != 20.0
    head.change(every[1])
    train(head, 2)
    assert set(head.state_dict()) == names
    assert head.state_dict()["margin.t"] != 0
    assert head.state_dict()["margin.norm_mean"] == seen
    head.change(every[2])
    assert head.margin.mean == seen
    train(head, 3)
    assert head.state_dict()["margin.norm_mean"] != seen
    again = build(every[2], every)
    again.load_state_dict(head.state_dict())
    assert train(again, 4)[0] == train(head, 4)[0]
