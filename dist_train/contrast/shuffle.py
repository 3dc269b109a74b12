"""Pictures in another order and on other ranks, so that BatchNorm tells nothing of which belong together.

A query and the key of the same picture would be normalised by the statistics of the same companions, which gives them
away among the keys of other groups. He et al., "Momentum Contrast" (CVPR 2020), section 3.3: keys are made in groups
that are drawn anew.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from dist_train.head.exchange import HeadGroup
from dist_train.runtime.to_device import to_device

_STREAM = 0x5F3759DF  # so that this draw has nothing in common with others of the same seed


class Shuffle:
    """A permutation of the G samples of a step, drawn by seed and step alone, and so the same on every rank.

    Args:
        seed: of the run.
        step: of the run.
        samples: G, over all ranks.
        group: the ranks; each has G/W samples in the order of ranks.
    """

    def __init__(self, seed: int, step: int, samples: int, group: HeadGroup) -> None:
        drawn = torch.Generator().manual_seed(hash((_STREAM, seed, step)) % 2**63)
        self.order = torch.randperm(samples, generator=drawn)
        self._group, self._share = group, samples // group.world_size

    def take(self, rows: Tensor) -> Tensor:
        """This rank's part of all ranks' rows in the new order: [B, ...] -> [B, ...]. A collective."""
        rank, share = self._group.rank, self._share
        if self._group.world_size == 1:
            return rows[to_device(self.order, rows.device)]
        mine = self.order[rank * share : (rank + 1) * share]  # what comes here, by its old place
        sent = self.order // share == rank
        targets = sent.nonzero().squeeze(1) // share  # of what goes from here, in the order in which it is wanted
        out = rows[to_device(self.order[sent] - rank * share, rows.device)]
        senders = mine // share
        came = torch.empty_like(rows)
        counts = [torch.bincount(each, minlength=self._group.world_size).tolist() for each in (senders, targets)]
        dist.all_to_all_single(came, out, counts[0], counts[1], group=self._group.group)
        # What comes is sorted by sender, and for each sender in the order in which it is wanted.
        place = torch.argsort(senders, stable=True)
        result = torch.empty_like(rows)
        result[to_device(place, rows.device)] = came
        return result

    def restore(self, every: Tensor) -> Tensor:
        """All ranks' rows [G, ...] from the new order back in the old one."""
        result = torch.empty_like(every)
        result[to_device(self.order, every.device)] = every
        return result
