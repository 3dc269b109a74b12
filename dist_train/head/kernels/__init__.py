"""Triton kernels of the head: what a CUDA device runs in place of `softmax`'s and `update`'s torch form."""

from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from dist_train.head.logits import Logits

WIDEST = 512
"""Numbers of a center whose gradients, for a tile of 64 rows or samples, fit the registers of a multiprocessor."""


def kernel_dtype(logits: "Logits", width: int, filtered: bool, device: torch.device) -> torch.dtype | None:
    """Type of the operands with which the fused softmax runs; None: torch's operators do its work.

    Args:
        logits: the margin and the arithmetic.
        width: numbers of a center, the bias included.
        filtered: small weights are left out of the backward pass.
        device: where the head computes.
    """
    numbers = width if logits.margin.normalised else width - 1
    fits = numbers <= WIDEST and not filtered and logits.arithmetic.name == "bfloat16"
    return torch.bfloat16 if fits and updates_fused(device) else None


def updates_fused(device: torch.device) -> bool:
    """Whether the kernel of the optimizer's step runs: a CUDA device, and triton is there."""
    return device.type == "cuda" and find_spec("triton") is not None
