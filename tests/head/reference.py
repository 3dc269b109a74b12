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


def sine(cosine):
    return (1 - cosine.square()).clamp_min(1e-6).sqrt()


def arc(cosine, margin):
    """cos(theta + m); past pi - m the continuation cos(theta) - m sin(m)."""
    margin = torch.as_tensor(margin, dtype=torch.float64)
    turned = cosine * margin.cos() - sine(cosine) * margin.sin()
    return torch.where(cosine > torch.cos(math.pi - margin), turned, cosine - margin * margin.sin())


def falling(phi):
    """cos(phi), past every multiple of pi continued downwards."""
    turns = (phi / math.pi).floor().detach()
    sign = torch.where(turns.remainder(2) == 0, 1.0, -1.0).double()
    return sign * phi.cos() - 2 * turns


def target_cosine(
    config: HeadConfig, t: Tensor, norms: Tensor, labels: Tensor, counts: Tensor, averages: dict[str, Tensor]
) -> Tensor:
    """The target's value in place of its cosine; written from the papers' formulas."""
    name = config.margin
    if name == "normface":
        return t
    if name == "cosface":
        return t - (0.35 if config.m3 is None else config.m3)
    if name == "sphereface":
        return falling((1.35 if config.m1 is None else config.m1) * t.acos())
    if name == "combined":
        m1, m2, m3 = (d if m is None else m for m, d in ((config.m1, 1.0), (config.m2, 0.3), (config.m3, 0.2)))
        return falling(m1 * t.acos() + m2) - m3
    if name == "adaface":
        seen = norms.detach().clamp(0.001, 100)
        momentum, m = config.adaface.momentum, 0.4 if config.m2 is None else config.m2
        mean = momentum * averages.get("mean", 20) + (1 - momentum) * seen.mean()
        deviation = momentum * averages.get("deviation", 100) + (1 - momentum) * seen.std()
        averages |= {"mean": mean, "deviation": deviation}
        quality = ((seen - mean) / (deviation + 1e-3) * config.adaface.concentration).clamp(-1, 1)
        return (t.acos() - m * quality).clamp(1e-3, math.pi - 1e-3).cos() - m - m * quality
    if name == "magface":
        own = config.magface
        clipped = norms.clamp(own.lower_norm, own.upper_norm)
        slope = (own.upper_margin - own.lower_margin) / (own.upper_norm - own.lower_norm)
        return arc(t, slope * (clipped - own.lower_norm) + own.lower_margin)
    if name == "adaptive":
        rare = counts.double() ** -config.adaptive.power
        share = (rare - rare.min()) / (rare.max() - rare.min())
        margins = config.adaptive.lowest + (config.adaptive.highest - config.adaptive.lowest) * share
        return arc(t, margins[labels])
    margin = 0.5 if config.m2 is None else config.m2
    if config.easy_margin:
        return torch.where(t > 0, t * math.cos(margin) - sine(t) * math.sin(margin), t)
    return arc(t, margin)


def solve(
    config: HeadConfig,
    rows: Tensor,
    embeddings: Tensor,
    labels: Tensor,
    chosen: Tensor,
    scale: float,
    counts: Tensor,
    weights: Tensor | None = None,
    averages: dict[str, Tensor] | None = None,
) -> Answer:
    """Loss and gradients of a batch, with the softmax over `chosen` classes.

    Args:
        config: the head's.
        rows: [C, K, D] (D + 1 with the bias for softmax).
        embeddings: [G, D].
        labels: [G].
        chosen: [C] bool.
        scale: s.
        counts: [C] images per class.
        weights: [G] of the samples' losses, whose sum takes the place of the mean.
        averages: the margin's by name, which this batch moves; empty at a run's first batch, and None alike.
    """
    averages = {} if averages is None else averages
    rows = rows.detach().double().clone().requires_grad_()
    embeddings = embeddings.detach().double().clone().requires_grad_()
    norms = embeddings.norm(dim=1)
    weights = torch.full((len(labels),), 1 / len(labels)).double() if weights is None else weights.double()
    penalty: Tensor | float = 0.0
    if config.margin == "softmax":
        logits = torch.einsum("gd,ckd->gck", embeddings, rows[:, :, :-1]) + rows[:, :, -1]
        logits = logits.amax(dim=2)
    else:
        unit = embeddings / norms[:, None]
        cosines = torch.einsum("gd,ckd->gck", unit, rows / rows.norm(dim=2, keepdim=True)).amax(dim=2)
        t = cosines.gather(1, labels[:, None])[:, 0]
        shown = target_cosine(config, t, norms, labels, counts, averages)
        others = cosines
        if config.interclass_threshold is not None:
            others = others.masked_fill(others > config.interclass_threshold, -torch.inf)
        if config.margin == "curricularface":
            momentum = config.curricular_momentum
            average = momentum * averages.get("target", 0) + (1 - momentum) * t.mean().detach()
            averages["target"] = average
            bound = (t.acos() + (0.5 if config.m2 is None else config.m2)).cos().detach()
            others = torch.where(others > bound[:, None], others * (average + others), others)
        if config.margin == "magface":
            clipped = norms.clamp(config.magface.lower_norm, config.magface.upper_norm)
            penalty = config.magface.weight * (weights * (clipped / config.magface.upper_norm**2 + 1 / clipped)).sum()
        logits = scale * others.scatter(1, labels[:, None], shown[:, None])
    logits = logits.masked_fill(~chosen, -torch.inf)
    loss = (weights * torch.nn.functional.cross_entropy(logits, labels, reduction="none")).sum() + penalty
    loss.backward()
    return Answer(loss.detach(), embeddings.grad, rows.grad)
