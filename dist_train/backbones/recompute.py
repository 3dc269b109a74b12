"""Activation checkpointing: Chen et al., "Training Deep Nets with Sublinear Memory Cost" (2016)."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


class Blocks(nn.Sequential):
    """Modules in a row. With `recompute` a training step keeps only what enters each, not what is formed inside.

    Names of weights are those of `nn.Sequential`, so checkpoints do not depend on it.

    Attributes:
        recompute: form the insides again in the backward pass.
    """

    recompute = False

    def forward(self, x: Tensor) -> Tensor:
        """What the last module makes of what the one before it gave."""
        if not (self.recompute and self.training and torch.is_grad_enabled()):
            whole: Tensor = super().forward(x)  # type: ignore[no-untyped-call]  # torch states no types there
            return whole
        for block in self:
            x = checkpoint(block, x, use_reentrant=False, context_fn=partial(_contexts, block))
        return x


def recompute_activations(backbone: nn.Module) -> None:
    """Turn activation checkpointing on in every `Blocks` of `backbone`."""
    for module in backbone.modules():
        if isinstance(module, Blocks):
            module.recompute = True


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _without_statistics(block)


@contextmanager
def _without_statistics(block: nn.Module) -> Iterator[None]:
    """The second forward pass normalises by the batch as the first did, but must not count it once more."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
    kept = [dict(norm.named_buffers()) for norm in norms]
    for norm, buffers in zip(norms, kept, strict=True):
        for name, buffer in buffers.items():
            setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            for name, buffer in buffers.items():
                setattr(norm, name, buffer)
