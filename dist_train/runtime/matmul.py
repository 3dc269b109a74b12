"""Float32 matrix products; those on a CPU go to oneDNN.

`torch.mm` gives them to MKL, which on AMD processors keeps to 256-bit registers: on a Zen 5 core it made 100 GFLOP/s of
the head's products where oneDNN makes 200. torch's own way to oneDNN in float32 is the operator to which its compiler
lowers linear layers; it is not part of the public interface, so `torch.mm` stands by where a build lacks it.
"""

from collections.abc import Callable

import torch
from torch import Tensor

_LINEAR = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


def matmul(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """`a` [n, k] times `b` [k, m] into `out` [n, m], which is returned. Not differentiable.

    A shape seen for the first time costs 0.4 ms on a CPU: it suits blocks of one size, not shapes that follow data.
    """
    if (linear := _onednn(a, b)) is None:
        return torch.mm(a, b, out=out)
    return out.copy_(linear(a, b.T, None, "none", [], ""))


def add_matmul(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Add `a` [n, k] times `b` [k, m] to `total` [n, m], which is returned. As `matmul`."""
    if (linear := _onednn(a, b)) is None:
        return total.addmm_(a, b)
    return total.add_(linear(a, b.T, None, "none", [], ""))


def _onednn(a: Tensor, b: Tensor) -> Callable[..., Tensor] | None:
    fits = a.device.type == "cpu" and a.dtype == b.dtype == torch.float32 and a.numel() > 0 < b.numel()
    return _LINEAR if fits else None
