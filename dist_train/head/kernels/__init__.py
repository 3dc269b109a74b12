"""Triton kernels of the head: what a CUDA device runs in place of `softmax`'s and `update`'s torch form."""

import logging
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from dist_train.head.arithmetic import Arithmetic

logger = logging.getLogger(__name__)


def kernel_dtype(arithmetic: "Arithmetic", filtered: bool, device: torch.device) -> torch.dtype | None:
    """Type of operands and weights with which the kernel forms weights; None: torch's operators form them in float32.

    Args:
        arithmetic: of the products.
        filtered: small weights are left out of the backward pass.
        device: where the head computes.
    """
    return torch.bfloat16 if arithmetic.name == "bfloat16" and not filtered and updates_fused(device) else None


def updates_fused(device: torch.device) -> bool:
    """Whether the kernel of the optimizer's step runs: a CUDA device, and a Triton that works.

    Ranks may differ in it: what they exchange has the same shapes and the same meaning either way.
    """
    return device.type == "cuda" and find_spec("triton") is not None and triton_runs()


@cache
def triton_runs() -> bool:
    """Whether Triton can launch a kernel here; a warning, once a process, where it cannot.

    Its way to the driver is C code that it compiles when it is first used, and keeps in the user's cache.
    """
    try:
        from triton.runtime import driver

        driver.active.get_current_target()
    except Exception as error:  # a compiler's exit status, a missing library, a cache that cannot be written
        logger.warning(
            "the head's kernels cannot be used, since Triton does not work here: %s: %s; PyTorch's operators take "
            "their place, which are slower. Triton needs a C compiler and Python's headers: "
            "apt install gcc python3-dev, or CC=COMPILER",
            type(error).__name__,
            error,
        )
        return False
    return True
