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
        self._groups = [(live, [torch.empty_like(each) for each in live]) for live in types.values()]

    @torch.no_grad()
    def keep(self) -> None:
        """Copy the buffers as they stand."""
        for live, kept in self._groups:
            torch._foreach_copy_(kept, live)

    @torch.no_grad()
    def restore(self) -> None:
        """Give the buffers the values that were kept."""
        for live, kept in self._groups:
            torch._foreach_copy_(live, kept)
