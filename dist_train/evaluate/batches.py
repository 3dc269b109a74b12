"""Batches of embeddings on one rank: the network's own and, added to it, that of each picture's mirror image."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from dist_train.errors import WorkError
from dist_train.evaluate.pictures import LoadFn, to_tensor

EmbedFn = Callable[[Tensor], Tensor]
"""Images [B, 3, S, S] float32 in [-1, 1] on the CPU -> raw embeddings [B, D], on any device."""

Numbers = TypeVar("Numbers", range, np.ndarray)

_DECODERS = min(4, len(os.sched_getaffinity(0)))  # threads; OpenCV decodes outside the interpreter lock
_AHEAD = 2  # batches decoded while the network works


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
