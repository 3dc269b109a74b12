"""BatchNorm's running statistics as they were before a step, which a refused step gets back."""

import torch
from torch import Tensor, nn


class KeptBuffers:
    """A copy of a module's buffers, made anew before each step: one kernel for those of a type, not one for each.

    Args:
        module: its buffers are changed in place and never replaced.
    """

    def __init__(self, module: nn.Module) -> None:
        types: dict[torch.dtype, list[Tensor]] = {}
        for buffer in module.buffers():
            types.setdefault(buffer.dtype, []).append(buffer)
        self._groups = [(live, *_flat_like(live)) for live in types.values()]

    @torch.no_grad()
    def keep(self) -> None:
        """Copy the buffers as they stand."""
        for live, _, kept in self._groups:
            torch._foreach_copy_(kept, live)

    @torch.no_grad()
    def restore(self) -> None:
        """Give the buffers the values that were kept."""
        for live, _, kept in self._groups:
            torch._foreach_copy_(live, kept)

    @torch.no_grad()
    def restore_unless(self, proceed: Tensor) -> None:
        """Give the buffers the values that were kept where `proceed`, [] bool on the device, is false."""
        for live, flat, kept in self._groups:
            found = torch.where(proceed, torch.cat([each.reshape(-1) for each in live]), flat)
            torch._foreach_copy_(live, _cut(found, kept))


def _flat_like(tensors: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """A flat tensor as long as `tensors`, of one type, together, and views of it in their shapes."""
    flat = torch.empty(sum(each.numel() for each in tensors), dtype=tensors[0].dtype, device=tensors[0].device)
    return flat, _cut(flat, tensors)


def _cut(flat: Tensor, shapes: list[Tensor]) -> list[Tensor]:
    parts = flat.split([each.numel() for each in shapes])
    return [part.view(each.shape) for part, each in zip(parts, shapes, strict=True)]
