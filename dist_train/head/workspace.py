"""Buffers that live across steps: a fresh 100 MB tensor costs more in page faults than the work done in it."""

from math import prod

import torch
from torch import Tensor


class Workspace:
    """Named flat buffers that only grow; asking for a shape gives a view of the buffer's beginning."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def get(self, name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """An uninitialised tensor of `shape`, valid until `name` is asked for again."""
        size = prod(shape)
        buffer = self._buffers.get((name, dtype))
        if buffer is None or buffer.numel() < size:
            buffer = torch.empty(size, dtype=dtype, device=self._device)
            self._buffers[name, dtype] = buffer
        return buffer[:size].view(shape)
