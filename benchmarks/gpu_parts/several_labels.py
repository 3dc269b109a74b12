"""The loss of samples with several labels in float64, by autograd: what the head must agree with."""

import torch
from torch import Tensor

from dist_train.head import HeadConfig
from tests.head.reference import Answer, arc


def solve_several(
    config: HeadConfig, rows: Tensor, embeddings: Tensor, labels: Tensor, chosen: Tensor, scale: float
) -> Answer:
    """log(1 + sum of exp(-positives)) + log(1 + sum of exp(negatives)) over `chosen` classes, and its gradients.

    Args:
        config: the head's: arcface or cosface.
        rows: [C, K, D].
        embeddings: [G, D].
        labels: [G, L], -1 for none.
        chosen: [C] bool.
        scale: s.
    """
    rows = rows.detach().double().clone().requires_grad_()
    embeddings = embeddings.detach().double().clone().requires_grad_()
    unit, centers = (each / each.norm(dim=-1, keepdim=True) for each in (embeddings, rows))
    cosines = torch.einsum("gd,ckd->gck", unit, centers).amax(dim=2)
    own = torch.zeros(len(labels), len(rows) + 1, dtype=torch.bool).scatter_(1, labels % (len(rows) + 1), True)[:, :-1]
    margin = cosines - (0.35 if config.m3 is None else config.m3) if config.margin == "cosface" else arc(cosines, 0.5)
    positives = (-scale * margin).masked_fill(~own, -torch.inf)
    negatives = (scale * cosines).masked_fill(own | ~chosen, -torch.inf)
    one = torch.zeros(len(labels), 1, dtype=torch.float64)
    loss = sum(torch.cat([one, each], dim=1).logsumexp(dim=1) for each in (positives, negatives)).mean()
    loss.backward()
    return Answer(loss.detach(), embeddings.grad, rows.grad)
