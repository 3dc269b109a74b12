"""The number format of the head's products: what their operands are rounded to before they are multiplied.

Products are added up in float32, and all else of the head is float32.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from dist_train.errors import UserError
from dist_train.runtime.matmul import add_matmul, matmul

_TF32_CUT = 13  # bits of a float32's fraction that tf32 has not


class Arithmetic:
    """Products of matrices whose operands are rounded to a format.

    A CPU rounds the operands and multiplies in float32: the same values, not the same speed.

    Args:
        name: "float32", "tf32", "bfloat16", or "auto": bfloat16 on GPUs that have it, else float32.
        device: where matrices are.

    Attributes:
        name: the format.

    Raises:
        UserError: the GPU does not multiply in that format.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        # The two came with the same GPUs. An emulation has the values, but costs more than float32.
        able = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
        if name == "auto":
            name = "bfloat16" if able and device.type == "cuda" else "float32"
        if name != "float32" and not able:
            raise UserError(
                f"head.arithmetic={name}: {torch.cuda.get_device_name(device)} does not multiply in it; "
                "expected auto or float32"
            )
        self.name = name

    def matmul(self, a: Tensor, b: Tensor, out: Tensor, repeats: bool = True) -> Tensor:
        """`a` [n, k] times `b` [k, m] into `out` [n, m] float32, which is returned. Not differentiable.

        Args:
            a: float32, or rounded already.
            b: likewise.
            out: receives the product.
            repeats: the shape comes again and again; see `runtime.matmul`.
        """
        if a.is_cuda and self.name == "bfloat16":
            return torch.mm(a.bfloat16(), b.bfloat16(), out_dtype=torch.float32, out=out)
        with _float32_products(self.name) if a.is_cuda else nullcontext():
            multiply = matmul if repeats else torch.mm
            return multiply(self._rounded(a), self._rounded(b), out=out)

    def add_matmul(self, total: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Add `a` [n, k] times `b` [k, m] to `total` [n, m] float32, which is returned. As `matmul`."""
        if a.is_cuda and self.name == "bfloat16":
            return total.add_(torch.mm(a.bfloat16(), b.bfloat16(), out_dtype=torch.float32))
        with _float32_products(self.name) if a.is_cuda else nullcontext():
            return add_matmul(total, self._rounded(a), self._rounded(b))

    def _rounded(self, values: Tensor) -> Tensor:
        if self.name == "float32" or values.is_cuda:
            return values
        if self.name == "bfloat16":
            return values.bfloat16().float()
        half = 1 << (_TF32_CUT - 1)
        bits = values.contiguous().view(torch.int32)
        return ((bits + half) & -(1 << _TF32_CUT)).view(torch.float32)


@contextmanager
def _float32_products(name: str) -> Iterator[None]:
    """CUDA's float32 products in tf32, or not, whatever the process has chosen for other code."""
    products = torch.backends.cuda.matmul
    before, products.fp32_precision = products.fp32_precision, "tf32" if name == "tf32" else "ieee"
    try:
        yield
    finally:
        products.fp32_precision = before
