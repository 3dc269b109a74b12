"""The three losses of the cascade's training over the samples of all ranks, and the mining of hard ones.

Zhang, Zhang, Li, Qiao: Joint Face Detection and Alignment using Multi-task Cascaded Convolutional Networks (IEEE Signal
Processing Letters, 2016), section II.C, equations 1 to 4.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from dist_train.head.exchange import HeadGroup

KINDS = ("negatives", "parts", "faces", "landmarks")
"""Kinds of samples, by their number."""
NEGATIVE, PART, FACE, LANDMARK = range(4)
SHARES = (3, 1, 1, 2)
"""How many of each kind a batch has, relative to the others (section II.D)."""


class Targets(NamedTuple):
    """What samples should be answered with.

    Attributes:
        kind: int64 [B], numbers of `KINDS`.
        boxes: [B, 4], offsets of the box.
        points: [B, 10], x and y of five points, in units of the crop.
    """

    kind: Tensor
    boxes: Tensor
    points: Tensor


class Tasks(NamedTuple):
    """What the three tasks weigh, and which share of the classified samples counts.

    Attributes:
        box: weight of the box; that of the class is 1.
        points: weight of the points.
        hard_mining: share of the samples with the largest losses that count for the class; 1: all.
    """

    box: float
    points: float
    hard_mining: float


class Losses(NamedTuple):
    """This rank's share of each task's loss, [] each; summed over ranks they are means over the global batch."""

    face: Tensor
    box: Tensor
    points: Tensor

    def total(self, tasks: Tasks) -> Tensor:
        """The weighted sum, []."""
        return self.face + tasks.box * self.box + tasks.points * self.points


def hardest(losses: Tensor, share: float) -> Tensor:
    """Which samples have the largest losses.

    Args:
        losses: [G].
        share: of them that is wanted, rounded down; at least one. Among equal losses the first ones come first.

    Returns:
        bool [G].
    """
    chosen = torch.zeros(len(losses), dtype=torch.bool, device=losses.device)
    if len(losses):
        count = max(1, int(share * len(losses)))
        chosen[losses.argsort(descending=True, stable=True)[:count]] = True
    return chosen


def cascade_losses(answers: Tensor, targets: Targets, tasks: Tasks, group: HeadGroup) -> Losses:
    """The losses of a batch; each sample counts only for its own tasks. A collective.

    - Class: cross-entropy of face and no face, of negatives and faces; the mean over the `hard_mining` of largest
      losses in the GLOBAL batch.
    - Box: the squared Euclidean distance of the four offsets, of faces and parts; the mean.
    - Points: the squared Euclidean distance of the ten coordinates, of landmark faces; the mean.

    Args:
        answers: [B, ANSWERS] of this rank's samples; all ranks have as many.
        targets: theirs.
        tasks: how much counts.
        group: the ranks.
    """
    kind = targets.kind
    is_face = (kind == FACE).to(answers.dtype)
    classified = (kind == NEGATIVE) | (kind == FACE)
    entropy = F.binary_cross_entropy_with_logits(answers[:, 0], is_face, reduction="none")
    # One exchange tells every rank which of all samples are the hardest, and how many count for each task.
    known = group.gather(torch.stack([entropy.detach(), kind.to(answers.dtype)], 1))  # [G, 2]
    every = known[:, 1].long()
    of_class = torch.where((every == NEGATIVE) | (every == FACE))[0]
    chosen = torch.zeros(len(every), dtype=torch.bool, device=answers.device)
    chosen[of_class[hardest(known[of_class, 0], tasks.hard_mining)]] = True
    own = chosen[group.rank * len(kind) : (group.rank + 1) * len(kind)]
    boxed, pointed = (kind == FACE) | (kind == PART), kind == LANDMARK
    return Losses(
        _mean(entropy, own & classified, chosen.sum()),
        _mean((answers[:, 1:5] - targets.boxes).square().sum(1), boxed, ((every == FACE) | (every == PART)).sum()),
        _mean((answers[:, 5:] - targets.points).square().sum(1), pointed, (every == LANDMARK).sum()),
    )


def _mean(losses: Tensor, counted: Tensor, count: Tensor) -> Tensor:
    """The counted ones' sum over `count`, which is that of all ranks; 0 where there are none."""
    return torch.where(counted, losses, 0).sum() / count.clamp(min=1)
