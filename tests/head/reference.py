"""The margin-softmax in one process, whole, in float64, by autograd: what the sharded head must agree with."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dist_train.head.config import HeadConfig


@dataclass
class Answer:
    loss: Tensor
    embeddings_grad: Tensor
    rows_grad: Tensor
    logits: Tensor


def sine(cosine):
    return (1 - cosine.square()).clamp_min(1e-6).sqrt()


def arc(cosine, margin):
    """cos(theta + m); past pi - m the continuation cos(theta) - m sin(m)."""
    margin = torch.as_tensor(margin, dtype=torch.float64)
    turned = cosine * margin.cos() - sine(cosine) * margin.sin()
    return torch.where(cosine > torch.cos(math.pi - margin), turned, cosine - margin * margin.sin())


def target_cosine(config: HeadConfig, cosine: Tensor, norms: Tensor, state: dict) -> Tensor:
    name = config.margin
    if name == "normface":
        return cosine
    if name == "cosface":
        return cosine - (0.35 if config.m3 is None else config.m3)
    if name == "arcface":
        margin = 0.5 if config.m2 is None else config.m2
        if config.easy_margin:
            return torch.where(cosine > 0, cosine * math.cos(margin) - sine(cosine) * math.sin(margin), cosine)
        return arc(cosine, margin)
    raise NotImplementedError(name)


def solve(
    config: HeadConfig,
    rows: Tensor,
    embeddings: Tensor,
    labels: Tensor,
    chosen: Tensor,
    scale: float,
    state: dict | None = None,
) -> Answer:
    """Loss and gradients with the softmax over `chosen` classes.

    Args:
        config: the head's.
        rows: [C, K, D] (D + 1 with the bias for softmax).
        embeddings: [G, D].
        labels: [G].
        chosen: [C] bool.
        scale: s.
        state: what stateful margins remember.
    """
    state = {} if state is None else state
    rows = rows.double().requires_grad_()
    embeddings = embeddings.double().requires_grad_()
    norms = embeddings.norm(dim=1)
    if config.margin == "softmax":
        logits = torch.einsum("gd,ckd->gck", embeddings, rows[:, :, :-1]) + rows[:, :, -1]
        logits = logits.amax(dim=2)
    else:
        unit = embeddings / norms[:, None]
        cosines = torch.einsum("gd,ckd->gck", unit, rows / rows.norm(dim=2, keepdim=True)).amax(dim=2)
        target = cosines.gather(1, labels[:, None])[:, 0]
        shown = target_cosine(config, target, norms, state)
        others = cosines
        if config.interclass_threshold is not None:
            others = others.masked_fill(others > config.interclass_threshold, -torch.inf)
        logits = scale * others.scatter(1, labels[:, None], shown[:, None])
    logits = logits.masked_fill(~chosen, -torch.inf)
    loss = torch.nn.functional.cross_entropy(logits, labels)
    loss.backward()
    return Answer(loss.detach(), embeddings.grad, rows.grad, logits.detach())
