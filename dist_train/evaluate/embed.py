"""Embeddings of encoded pictures, computed over all ranks, with the picture's mirror image added."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar, cast

import cv2
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from dist_train.data.levels import normalise
from dist_train.data.pictures import PictureError, check, decode_checked
from dist_train.errors import UserError, WorkError
from dist_train.runtime.ranks import ALONE, Ranks

logger = logging.getLogger(__name__)

EmbedFn = Callable[[Tensor], Tensor]
"""Images [B, 3, S, S] float32 in [-1, 1] on the CPU -> raw embeddings [B, D], on any device."""

LoadFn = Callable[[int], np.ndarray]
"""Number of a picture -> uint8 [S, S, 3], red first; called from several threads."""

Numbers = TypeVar("Numbers", range, np.ndarray)

_DECODERS = min(4, len(os.sched_getaffinity(0)))  # threads; OpenCV decodes outside the interpreter lock
_AHEAD = 2  # batches decoded while the network works


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of some pictures, in their order.

    Attributes:
        features: float32 [N, D], f(picture) + f(mirrored picture), not normalised.
        mean_norm: mean L2 norm of the network's raw outputs, mirrored ones included.
    """

    features: Tensor
    mean_norm: float

    def normalized(self) -> Tensor:
        """Unit rows [N, D]; a zero row stays zero."""
        return torch.nn.functional.normalize(self.features, dim=1)


def _decode(data: bytes, image_size: int, name: str) -> tuple[np.ndarray, int, int]:
    """The picture as uint8 [S, S, 3], red first, and its own height and width before scaling.

    Raises:
        WorkError: not a picture, cut off, or too large.
    """
    try:
        check(data)
        picture = decode_checked(data)
    except PictureError as error:
        raise WorkError(f"{name}: {error}") from error
    height, width = picture.shape[:2]
    if (height, width) != (image_size, image_size):
        shrinks = height > image_size
        picture = cv2.resize(
            picture, (image_size, image_size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        )
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), height, width


def decoding(read: Callable[[int], bytes], image_size: int, name: str) -> LoadFn:
    """A loader of pictures whose encoded bytes `read` gives; says once that it scales them."""
    told = False

    def load(number: int) -> np.ndarray:
        nonlocal told
        picture, height, width = _decode(read(number), image_size, f"{name}, picture {number}")
        if (height, width) != (image_size, image_size) and not told:
            told = True
            logger.warning(
                "%s: pictures of %d x %d px are scaled to the %d px that the model takes; figures of a model for their "
                "own size are not comparable",
                name,
                width,
                height,
                image_size,
            )
        return picture

    return load


def to_tensor(pictures: Sequence[np.ndarray]) -> Tensor:
    """Pictures uint8 [S, S, 3] -> float32 [B, 3, S, S] in [-1, 1]."""
    batch = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)  # [B, S, S, 3] -> [B, 3, S, S]
    return normalise(batch, torch.empty(batch.shape))


def rank_slice(count: int, rank: int, world_size: int) -> tuple[int, int]:
    """The contiguous part [start, stop) of `count` items that `rank` works on; sizes differ by at most one."""
    return count * rank // world_size, count * (rank + 1) // world_size


def embed_batches(
    embed_fn: EmbedFn, load: LoadFn, numbers: Numbers, batch_size: int, *, flip: bool = True, name: str = "pictures"
) -> Iterator[tuple[Numbers, Tensor, Tensor]]:
    """Embed pictures in order, batch by batch; while the network works on one, the next are decoded.

    Yields:
        The pictures' numbers, features float32 [B, D] = f(picture) + f(mirrored picture), and their mean raw norms [B].

    Raises:
        WorkError: a picture that cannot be decoded, or embeddings that are not finite.
    """
    for part, images in _batches(load, numbers, batch_size):
        with torch.inference_mode():
            raw = [embed_fn(images).float().cpu()]
            if flip:
                raw.append(embed_fn(images.flip(3)).float().cpu())
        features = torch.stack(raw).sum(dim=0)  # [B, D]
        bad = (~torch.isfinite(features).all(dim=1)).nonzero()
        if len(bad):
            raise WorkError(
                f"{name}: the embedding of picture {part[int(bad[0])]} is not finite; "
                "training diverged or the model is damaged"
            )
        yield part, features, torch.stack([each.norm(dim=1) for each in raw]).mean(dim=0)


def _batches(load: LoadFn, numbers: Numbers, batch_size: int) -> Iterator[tuple[Numbers, Tensor]]:
    parts = [numbers[i : i + batch_size] for i in range(0, len(numbers), batch_size)]
    # Two pools: a batch is put together only when its pictures are there, and must not keep a decoder waiting.
    with ThreadPoolExecutor(1) as assembler, ThreadPoolExecutor(_DECODERS) as pool:

        def begin(part: Numbers) -> Future[Tensor]:
            pictures = [pool.submit(load, number) for number in part]
            return assembler.submit(lambda: to_tensor([picture.result() for picture in pictures]))

        pending = [begin(part) for part in parts[:_AHEAD]]
        try:
            for index, part in enumerate(parts):
                if index + _AHEAD < len(parts):
                    pending.append(begin(parts[index + _AHEAD]))
                yield part, pending.pop(0).result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            assembler.shutdown(wait=False, cancel_futures=True)


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
    return Embeddings(rows[:, :-1], float(rows[:, -1].mean()))


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
