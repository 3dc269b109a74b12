"""Triton kernels of the head: what a CUDA device runs in place of `softmax`'s and `update`'s torch form."""

from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from dist_train.head.arithmetic import Arithmetic


def kernel_dtype(arithmetic: "Arithmetic", filtered: bool, device: torch.device) -> torch.dtype | None:
    """Type of operands and weights with which the kernel forms weights; None: torch's operators form them in float32.

    Args:
        arithmetic: of the products.
        filtered: small weights are left out of the backward pass.
        device: where the head computes.
    """
    return torch.bfloat16 if arithmetic.name == "bfloat16" and not filtered and updates_fused(device) else None


def updates_fused(device: torch.device) -> bool:
    """Whether the kernel of the optimizer's step runs: a CUDA device, and triton is there."""
    return device.type == "cuda" and find_spec("triton") is not None
