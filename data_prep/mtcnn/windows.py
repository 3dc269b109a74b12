"""Means over rectangles of many pictures: what pyramid levels and candidates of every size are resampled by.

A picture that becomes h x w pixels is cut into h x w rectangles, which overlap by a pixel where the sizes do not
divide: row i covers the rows floor(i·H/h) to ceil((i+1)·H/h). This is torch's `adaptive_avg_pool2d`, the resampling
that the reference uses for all scales and crops. The networks are sensitive to it: with cv2's INTER_AREA, which weighs
pixels at the borders of a rectangle by their share, one face in 15 gets another box.

Sums over rectangles come from summed-area tables, so their cost does not depend on the size of the picture. Sums are
int32 and may wrap around; differences of wrapped sums are exact as long as a rectangle has less than 8 million pixels.
"""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CHANNELS = 4  # red, green, blue and one that is not looked at, see networks.py


class SumTables:
    """The summed-area tables of a batch of pictures, one after the other in one buffer.

    Attributes:
        sums: [cells] of four int32 each, as one 16-byte word (complex128 to torch: nothing else is as wide).
        first: [n] int64, the first cell of each table.
        stride: [n] int64, cells in a row of each table: width + 1.
    """

    def __init__(self, pictures: Sequence[NDArray[np.uint8]], buffer: NDArray[np.int32], device: torch.device) -> None:
        """Tables of `pictures`, each [H, W, 3], in `buffer` [at least cells(pictures), 4], which is in use from now."""
        self.shapes = [picture.shape[:2] for picture in pictures]
        starts = np.cumsum([0, *(cells(picture) for picture in pictures)])
        for start, picture in zip(starts, pictures, strict=False):
            height, width = picture.shape[:2]
            table = buffer[start : start + cells(picture)].reshape(height + 1, width + 1, CHANNELS)
            cv2.integral(cv2.cvtColor(picture, cv2.COLOR_RGB2RGBA), table, sdepth=cv2.CV_32S)
        self.sums = torch.from_numpy(buffer[: starts[-1]]).to(device).view(torch.complex128).squeeze(1)
        self.first = torch.from_numpy(starts[:-1]).to(device)
        self.stride = torch.tensor([width + 1 for _, width in self.shapes], device=device)

    def level(self, picture: int, height: int, width: int, top: int, left: int, out: Tensor) -> None:
        """Resample a picture to `height` x `width` and write a part of that, normalised, to `out`.

        Args:
            picture: its number.
            height: of the whole level, in pixels.
            width: likewise.
            top: first row of the part.
            left: first column of the part.
            out: [h, w, CHANNELS]; where it reaches over the level's edge, the last row or column is repeated.
        """
        rows, columns = self.shapes[picture]
        start = int(self.first[picture])
        table = self.sums[start : start + (rows + 1) * (columns + 1)].view(rows + 1, columns + 1)
        upper, lower = _edges(rows, height, top, out.shape[0], out.device)  # [h]
        before, after = _edges(columns, width, left, out.shape[1], out.device)  # [w]
        strips = _subtract(table.index_select(0, lower), table.index_select(0, upper))
        shape = out.shape[:2]
        sums = _subtract(strips.gather(1, after.expand(shape)), strips.gather(1, before.expand(shape)))
        # [h, w, CHANNELS] -> [h, w·CHANNELS]: torch broadcasts over long rows much faster than over four numbers.
        share = (1 / (lower - upper))[:, None] * (1 / (after - before)).repeat_interleave(CHANNELS) / 128
        torch.mul(_numbers(sums).flatten(1), share, out=out.flatten(1))
        out.sub_(127.5 / 128)

    def crops(self, picture: Tensor, boxes: Tensor, size: int) -> Tensor:
        """Resample rectangles to squares, normalised.

        Args:
            picture: [n] int64, numbers of the pictures.
            boxes: [n, 4] int64: left, top, right, bottom in pixels, the last two exclusive; in the picture, not empty.
            size: of the squares in pixels.

        Returns:
            [n, CHANNELS, size, size] float32, channels last in memory.
        """
        stride = self.stride[picture][:, None]
        before, after = _box_edges(boxes[:, 0], boxes[:, 2], size)  # [n, size]
        upper, lower = _box_edges(boxes[:, 1], boxes[:, 3], size)
        first = self.first[picture][:, None]
        above, below = first + upper * stride, first + lower * stride

        def at(rows: Tensor, columns: Tensor) -> Tensor:
            index = rows[:, :, None] + columns[:, None, :]
            return self.sums.index_select(0, index.flatten()).view(index.shape)

        right = _subtract(at(below, after), at(above, after))
        left = _subtract(at(below, before), at(above, before))
        area = (lower - upper)[:, :, None] * (after - before)[:, None, :]
        out = _numbers(_subtract(right, left)) * (1 / area / 128)[..., None] - 127.5 / 128
        return out.permute(0, 3, 1, 2)


def cells(picture: NDArray[np.uint8]) -> int:
    """Size of a picture's table."""
    height, width = picture.shape[:2]
    return (height + 1) * (width + 1)


def _edges(source: int, target: int, first: int, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where the rectangles `first`, `first` + 1, ... of `target` begin and end in `source` pixels: two [count]."""
    index = torch.arange(first, first + count, device=device).clamp_(max=target - 1)
    return index * source // target, ((index + 1) * source + target - 1) // target


def _box_edges(start: Tensor, stop: Tensor, size: int) -> tuple[Tensor, Tensor]:
    index = torch.arange(size, device=start.device)
    length = (stop - start)[:, None]
    return start[:, None] + index * length // size, start[:, None] + ((index + 1) * length + size - 1) // size


def _numbers(words: Tensor) -> Tensor:
    """The four int32 of each word: [...] -> [..., CHANNELS]."""
    return words.unsqueeze(-1).view(torch.int32)


def _subtract(a: Tensor, b: Tensor) -> Tensor:
    """Words of the differences of the numbers in words `a` and `b`."""
    return (_numbers(a) - _numbers(b)).view(torch.complex128).squeeze(-1)
