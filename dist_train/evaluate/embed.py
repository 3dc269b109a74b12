"""Embeddings of encoded pictures, computed over all ranks, with the picture's mirror image added."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from dist_train.errors import UserError, WorkError

EmbedFn = Callable[[Tensor], Tensor]
"""Images [B, 3, S, S] float32 in [-1, 1] on the CPU -> raw embeddings [B, D], on any device."""

ReadFn = Callable[[int], bytes]
"""Number of a picture -> its encoded bytes; called from several threads."""

_DECODERS = 4  # threads; OpenCV decodes outside the interpreter lock
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


def decode_picture(data: bytes, image_size: int, name: str) -> np.ndarray:
    """Decode a picture to uint8 [S, S, 3], red first; another size is scaled.

    Raises:
        WorkError: not a picture.
    """
    buffer = np.frombuffer(data, dtype=np.uint8)
    picture = cv2.imdecode(buffer, cv2.IMREAD_COLOR) if len(buffer) else None
    if picture is None:
        raise WorkError(f"{name}: cannot be decoded ({len(data)} bytes); it is damaged or no picture")
    if picture.shape[:2] != (image_size, image_size):
        shrinks = picture.shape[0] > image_size
        picture = cv2.resize(
            picture, (image_size, image_size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        )
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def to_tensor(pictures: Sequence[np.ndarray]) -> Tensor:
    """Pictures uint8 [S, S, 3] -> float32 [B, 3, S, S] in [-1, 1]."""
    batch = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)  # [B, S, S, 3] -> [B, 3, S, S]
    return batch.to(torch.float32, memory_format=torch.contiguous_format).mul_(1 / 127.5).sub_(1)


def rank_slice(count: int, rank: int, world_size: int) -> tuple[int, int]:
    """The contiguous part [start, stop) of `count` items that `rank` works on; sizes differ by at most one."""
    return count * rank // world_size, count * (rank + 1) // world_size


def embed_pictures(
    embed_fn: EmbedFn,
    read: ReadFn,
    count: int,
    image_size: int,
    batch_size: int,
    *,
    flip: bool = True,
    name: str = "pictures",
    rank: int = 0,
    world_size: int = 1,
    group: dist.ProcessGroup | None = None,
) -> Embeddings:
    """Embed pictures 0 .. count - 1, each rank its contiguous part; every rank gets all embeddings.

    Collectives (with `world_size` > 1): one gather of messages, one all-gather of [count / W, D + 1] float32.

    Args:
        embed_fn: the network.
        read: gives a picture's encoded bytes.
        count: number of pictures.
        image_size: side of the network's input in pixels.
        batch_size: pictures per forward pass.
        flip: add the embedding of the mirrored picture.
        name: of the set, for messages.
        rank: this process among `world_size`.
        world_size: processes that share the work.
        group: their group; it must carry CPU tensors (gloo).

    Raises:
        WorkError: a picture that cannot be decoded, or embeddings that are not finite; raised on every rank.
        UserError: nothing to embed.
    """
    if count == 0:
        raise UserError(f"{name}: no pictures in it")
    start, stop = rank_slice(count, rank, world_size)
    rows: Tensor | None = None
    problem: str | None = None
    try:
        rows = _embed_range(embed_fn, read, range(start, stop), image_size, batch_size, flip, name)
    except WorkError as error:
        problem = str(error)
    rows = _gather_rows(rows, problem, count, world_size, group)
    return Embeddings(rows[:, :-1], float(rows[:, -1].mean()))


def _embed_range(
    embed_fn: EmbedFn, read: ReadFn, numbers: range, image_size: int, batch_size: int, flip: bool, name: str
) -> Tensor | None:
    """Features and mean raw norm of some pictures: [n, D + 1]; None where there are none."""
    parts = []
    for part, images in _batches(read, numbers, image_size, batch_size, name):
        with torch.inference_mode():
            raw = [embed_fn(images).float().cpu()]
            if flip:
                raw.append(embed_fn(images.flip(3)).float().cpu())
        features = torch.stack(raw).sum(dim=0)  # [B, D]
        norms = torch.stack([each.norm(dim=1) for each in raw]).mean(dim=0)  # [B]
        bad = (~torch.isfinite(features).all(dim=1)).nonzero()
        if len(bad):
            raise WorkError(
                f"{name}: the embedding of picture {part[int(bad[0])]} is not finite; "
                "training diverged or the model is damaged"
            )
        parts.append(torch.cat([features, norms[:, None]], dim=1))
    return torch.cat(parts) if parts else None


def _batches(
    read: ReadFn, numbers: range, image_size: int, batch_size: int, name: str
) -> Iterator[tuple[range, Tensor]]:
    """Decoded batches; while the network works on one, the next are decoded."""

    def load(number: int) -> np.ndarray:
        return decode_picture(read(number), image_size, f"{name}, picture {number}")

    parts = [numbers[i : i + batch_size] for i in range(0, len(numbers), batch_size)]
    with ThreadPoolExecutor(_DECODERS) as pool:
        pending = [[pool.submit(load, n) for n in part] for part in parts[:_AHEAD]]
        try:
            for index, part in enumerate(parts):
                if index + _AHEAD < len(parts):
                    pending.append([pool.submit(load, n) for n in parts[index + _AHEAD]])
                yield part, to_tensor([future.result() for future in pending.pop(0)])
        finally:
            pool.shutdown(cancel_futures=True)


def _gather_rows(
    rows: Tensor | None, problem: str | None, count: int, world_size: int, group: dist.ProcessGroup | None
) -> Tensor:
    if world_size == 1:
        if problem or rows is None:
            raise WorkError(problem or "no embeddings")
        return rows
    # Agree first: a rank that failed would leave the others waiting in the collective below.
    notes: list[tuple[str | None, int]] = [(None, 0)] * world_size
    dist.all_gather_object(notes, (problem, 0 if rows is None else rows.shape[1]), group=group)
    found = [text for text, _ in notes if text]
    if found:
        raise WorkError(found[0])
    width = max(width for _, width in notes)
    sizes = [stop - start for start, stop in (rank_slice(count, r, world_size) for r in range(world_size))]
    mine = torch.zeros(max(sizes), width)
    if rows is not None:
        mine[: len(rows)] = rows
    gathered = [torch.empty_like(mine) for _ in range(world_size)]
    dist.all_gather(gathered, mine, group=group)
    return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)])
