"""Counts the bytes that tensor operations read and write, and the operations of matrix products."""

from typing import Any, Self
from unittest import mock

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dist_train.runtime import matmul

_FREE = {"empty", "new_empty", "empty_like", "empty_strided", "detach", "set_", "lift_fresh"}
_PRODUCTS = {"mm": 0, "addmm": 1, "addmm_": 1}


def _bytes(*values: Any) -> int:
    return sum(tensor.nbytes for tensor in tree_leaves(values) if isinstance(tensor, Tensor))


class Traffic(TorchDispatchMode):
    """While entered, counts what operations would move if nothing stayed in a cache.

    Products are `torch.mm`'s meanwhile, as on a GPU: oneDNN's are copied to where they belong.

    Attributes:
        bytes: read and written.
        flops: multiplications and additions of matrix products.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.flops = 0
        self._as_on_gpu = mock.patch.object(matmul, "_LINEAR", None)

    def __enter__(self) -> Self:
        """Begin to count."""
        self._as_on_gpu.start()
        super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        """End it."""
        super().__exit__(*error)
        self._as_on_gpu.stop()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Count one operation."""
        out = func(*args, **(kwargs or {}))
        self.bytes += moved(func, args, kwargs or {}, out)
        name = func._schema.name.removeprefix("aten::")
        if name in _PRODUCTS:
            left, right = args[_PRODUCTS[name] : _PRODUCTS[name] + 2]
            self.flops += 2 * left.shape[0] * left.shape[1] * right.shape[1]
        return out


def moved(func: Any, args: tuple, kwargs: dict, out: Any) -> int:
    """Bytes that an operation reads and writes."""
    namespace, name = func._schema.name.split("::")
    if namespace != "aten" or func.is_view or name in _FREE:
        return 0
    written = _bytes(out)
    if name in ("index_select", "index", "gather"):  # only what is picked is read
        return 2 * written
    if name in ("index_copy_", "index_put_", "_index_put_impl_", "scatter_"):  # only what is put is touched
        return 2 * _bytes(args[-2] if name.endswith("put_") or name == "_index_put_impl_" else args[-1])
    if name == "index_add_":
        return 3 * _bytes(args[3])
    if name in ("copy_", "fill_", "zero_", "random_", "normal_"):  # the old values are not read
        return written + _bytes(args[1:])
    read = _bytes(args) + _bytes({key: value for key, value in kwargs.items() if key != "out"})
    return read + written
