"""Resampling by means over rectangles, for pyramid levels and candidates of every size.

A picture that becomes h x w pixels is cut into h x w rectangles, which overlap by a pixel where the sizes do not
divide: row i covers the rows floor(i·H/h) to ceil((i+1)·H/h). This is torch's `adaptive_avg_pool2d`, the resampling
that the reference uses for all scales and crops. The networks are sensitive to it: with cv2's INTER_AREA, which weighs
pixels at the borders of a rectangle by their share, one face in 15 gets another box.

Sums over rectangles come from summed-area tables, so their cost does not depend on the size of the picture. Sums are
int32 and may wrap around; differences of wrapped sums are exact as long as a rectangle has less than 8 million pixels.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CHANNELS = 4  # red, green, blue and one with weights of zero, see networks.py
WORD = torch.complex128


class SumTables:
    """The summed-area tables of a batch of pictures, one after the other in one buffer.

    A cell holds four int32 sums. They are gathered as one word of 16 bytes; complex128 is the one type of torch that is
    as wide.

    Attributes:
        shapes: height and width of each picture.
    """

    def __init__(self, pictures: Sequence[NDArray[np.uint8]], buffer: NDArray[np.int32], device: torch.device) -> None:
        """Tables of `pictures`, each [H, W, 3], in `buffer` [at least cells(pictures), 4], theirs from now on."""
        self.shapes = [picture.shape[:2] for picture in pictures]
        self._starts = list(accumulate(map(cells, pictures), initial=0))
        for start, picture in zip(self._starts, pictures, strict=False):
            height, width = picture.shape[:2]
            table = buffer[start : start + cells(picture)].reshape(height + 1, width + 1, CHANNELS)
            cv2.integral(cv2.cvtColor(picture, cv2.COLOR_RGB2RGBA), table, sdepth=cv2.CV_32S)
        self._sums = torch.from_numpy(buffer[: self._starts[-1]]).to(device)
        self._words = self._sums.view(WORD)[:, 0]
        self._first = torch.tensor(self._starts[:-1], device=device)
        self._stride = torch.tensor([width + 1 for _, width in self.shapes], device=device)

    def level(self, picture: int, height: int, width: int, top: int, left: int, out: Tensor) -> None:
        """Resample a picture to `height` x `width` and write a part of that, normalised, to `out`.

        Args:
            picture: number of the picture.
            height: height of the whole level in pixels.
            width: width of the whole level in pixels.
            top: first row of the part.
            left: first column of the part.
            out: takes the part, [h, w, CHANNELS]; beyond the level's edge the last row or column is repeated.
        """
        rows, columns = self.shapes[picture]
        start, stop = self._starts[picture : picture + 2]
        table = self._sums[start:stop].view(rows + 1, (columns + 1) * CHANNELS)
        upper, lower, down = _edges(rows, height, top, out.shape[0], out.device)  # [h]
        before, after, across = _edges(columns, width, left, out.shape[1], out.device)  # [w]
        strips = (table.index_select(0, lower) - table.index_select(0, upper)).view(WORD)  # [h, columns + 1]
        shape = out.shape[:2]
        sums = strips.gather(1, after.expand(shape)).view(torch.int32)  # [h, w·CHANNELS]
        sums -= strips.gather(1, before.expand(shape)).view(torch.int32)
        # Flat rows: torch broadcasts over long rows much faster than over four numbers.
        torch.mul(sums, (across / 128).repeat_interleave(CHANNELS) * down[:, None], out=out.flatten(1))
        out.sub_(127.5 / 128)

    def crops(self, picture: Tensor, boxes: Tensor, size: int) -> Tensor:
        """Resample rectangles to squares, normalised.

        Args:
            picture: [n] int64, numbers of the pictures.
            boxes: [n, 4] int64: left, top, right, bottom in pixels, the last two exclusive; in the picture, not empty.
            size: side of the squares in pixels.

        Returns:
            [n, CHANNELS, size, size] float32, channels last in memory.
        """
        stride = self._stride[picture][:, None]
        before, after = _box_edges(boxes[:, 0], boxes[:, 2], size)  # [n, size]
        upper, lower = _box_edges(boxes[:, 1], boxes[:, 3], size)
        first = self._first[picture][:, None]
        above, below = first + upper * stride, first + lower * stride

        def at(rows: Tensor, columns: Tensor) -> Tensor:
            """Sums [n·size·size·CHANNELS] at the corners where `rows` and `columns` [n, size] cross."""
            return self._words.index_select(0, (rows[:, :, None] + columns[:, None, :]).flatten()).view(torch.int32)

        sums = at(below, after).sub_(at(above, after)).sub_(at(below, before)).add_(at(above, before))
        share = 1 / ((lower - upper)[:, :, None] * (after - before)[:, None, :] * 128)
        out = sums.view(*share.shape, CHANNELS) * share[..., None] - 127.5 / 128
        return out.permute(0, 3, 1, 2)


def cells(picture: NDArray[np.uint8]) -> int:
    """Size of a picture's table."""
    height, width = picture.shape[:2]
    return int((height + 1) * (width + 1))


@lru_cache(maxsize=1024)  # sets have many pictures of one size
def _edges(source: int, target: int, first: int, count: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Starts, ends and 1 / length of the rectangles `first`, `first` + 1, ... of `target`, in `source` pixels.

    Three tensors [count]; numbers beyond the last rectangle repeat it.
    """
    index = torch.arange(first, first + count, device=device).clamp_(max=target - 1)
    start, stop = index * source // target, ((index + 1) * source + target - 1) // target
    return start, stop, 1 / (stop - start)


def _box_edges(start: Tensor, stop: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Starts and ends for boxes of different lengths: two tensors [n, size] in pixels of the pictures."""
    index = torch.arange(size, device=start.device)
    length = (stop - start)[:, None]
    return start[:, None] + index * length // size, start[:, None] + ((index + 1) * length + size - 1) // size
