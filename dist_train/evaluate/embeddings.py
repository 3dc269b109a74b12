"""Embeddings of a set's pictures: each rank computes a part, every rank gets all of them."""

from dataclasses import dataclass
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor

from dist_train.errors import UserError
from dist_train.evaluate.batches import EmbedFn, embed_batches
from dist_train.evaluate.pictures import LoadFn
from dist_train.runtime.ranks import ALONE, Ranks


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of some pictures, in their order.

    Attributes:
        features: float32 [N, D], f(picture) + f(mirrored picture), not normalised.
        norms: float32 [N], mean L2 norm of the network's raw outputs for a picture and its mirrored one.
    """

    features: Tensor
    norms: Tensor

    @property
    def mean_norm(self) -> float:
        """Mean of `norms`."""
        return float(self.norms.mean())

    def normalized(self) -> Tensor:
        """Unit rows [N, D]; a zero row stays zero."""
        return torch.nn.functional.normalize(self.features, dim=1)


def rank_slice(count: int, rank: int, world_size: int) -> tuple[int, int]:
    """The contiguous part [start, stop) of `count` items that `rank` works on; sizes differ by at most one."""
    return count * rank // world_size, count * (rank + 1) // world_size


def embed_pictures(
    embed_fn: EmbedFn,
    load: LoadFn,
    count: int,
    batch_size: int,
    *,
    flip: bool = True,
    name: str = "pictures",
    ranks: Ranks = ALONE,
) -> Embeddings:
    """Embed pictures 0 .. count - 1, each rank its contiguous part; every rank gets all embeddings.

    Collectives (with several ranks): one gather of messages, one all-gather of [count / W, D + 1] float32.

    Args:
        embed_fn: the network.
        load: gives a decoded picture.
        count: number of pictures.
        batch_size: pictures per forward pass.
        flip: add the embedding of the mirrored picture.
        name: of the set, for messages.
        ranks: the processes that share the work.

    Raises:
        WorkError: a picture that cannot be decoded, or embeddings that are not finite; raised on every rank.
        UserError: nothing to embed.
    """
    if count == 0:
        raise UserError(f"{name}: no pictures in it")

    def embed_part() -> Tensor | None:
        numbers = range(*rank_slice(count, ranks.rank, ranks.world_size))
        batches = embed_batches(embed_fn, load, numbers, batch_size, flip=flip, name=name)
        rows = [torch.cat([features, norms[:, None]], dim=1) for _, features, norms in batches]
        return torch.cat(rows) if rows else None

    rows = _gather_rows(ranks.agree(embed_part, "all"), count, ranks)
    return Embeddings(rows[:, :-1], rows[:, -1])


def _gather_rows(rows: Tensor | None, count: int, ranks: Ranks) -> Tensor:
    """Every rank's rows, one after another; a rank without any gives None."""
    if ranks.control_group is None:
        return cast(Tensor, rows)
    widths = ranks.gather(0 if rows is None else rows.shape[1])
    bounds = (rank_slice(count, rank, ranks.world_size) for rank in range(ranks.world_size))
    sizes = [stop - start for start, stop in bounds]
    mine = torch.zeros(max(sizes), max(widths))  # a collective wants equal shapes
    if rows is not None:
        mine[: len(rows)] = rows
    gathered = [torch.empty_like(mine) for _ in range(ranks.world_size)]
    dist.all_gather(gathered, mine, group=ranks.control_group)
    return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)])
