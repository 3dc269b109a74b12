"""Calls that would make the host wait for a GPU, counted on a CPU.

A run on the device `cpu:0` computes on the CPU as any other, but what it is asked to keep there is told from what it
keeps on the host, `cpu`: by the device that a call names, and from there by descent, operation by operation.
"""

import sys
import traceback
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

NEAR = torch.device("cpu", 0)
"""The device whose work is not waited for."""

ROOT = Path(__file__).parents[1]
# Operators whose result, or its size, the host learns.
READING = {
    *("_local_scalar_dense", "nonzero", "nonzero_static", "_unique", "_unique2", "unique_dim", "unique_consecutive"),
    *("masked_select", "equal", "bincount", "histc", "repeat_interleave"),
}
# Methods that read without an operator where memory is the host's already.
METHODS = {
    *(Tensor.cpu, Tensor.numpy, Tensor.tolist, Tensor.item, Tensor.__array__, Tensor.__bool__, Tensor.__float__),
    *(Tensor.__int__, Tensor.__index__),
}
DEVICE = Tensor.device.__get__
MAKING = {torch.tensor, torch.as_tensor, torch.asarray}


class Waits:
    """While entered, looks at every operation of this thread.

    Args:
        near: what is on the device at the start.

    Attributes:
        found: waits so far, each as the operation and the line of the product that asks for it.
    """

    def __init__(self, near: Iterable[Tensor] = ()) -> None:
        self.found: list[str] = []
        self._near: dict[int, StorageWeakRef] = {}  # each keeps its address from being given out again
        self.add(near)
        self._modes = _Calls(self), _Operators(self)

    def add(self, tensors: Iterable[Tensor]) -> None:
        """These are on the device."""
        for tensor in tensors:
            reference = StorageWeakRef(tensor.untyped_storage())
            self._near[reference.cdata] = reference

    def near(self, value: object) -> bool:
        return isinstance(value, Tensor) and value.untyped_storage()._cdata in self._near

    def note(self, what: str) -> None:
        own = [line for line in traceback.extract_stack() if line.filename.startswith(f"{ROOT}/dist_train")]
        if own and own[-1].name in ("refusal", "<genexpr>") and own[-1].filename.endswith("runtime/verdict.py"):
            return  # the device is past that by then
        where = f"{own[-1].filename.removeprefix(f'{ROOT}/')}:{own[-1].lineno} {own[-1].line}" if own else "torch"
        self.found.append(f"{what} at {where}")

    def __enter__(self) -> "Waits":
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)


class _Calls(TorchFunctionMode):
    """Calls as the code writes them, with the devices that they name."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self._waits = waits

    def __torch_function__(self, call, types, args=(), kwargs=None):
        kwargs, waits = kwargs or {}, self._waits
        if call == DEVICE:
            return NEAR if waits.near(args[0]) else call(*args)
        given = [*args, *kwargs.values()]
        if call in METHODS and waits.near(args[0]):
            waits.note(call.__name__)
        target = next((each for each in given if isinstance(each, torch.device) and each == NEAR), None)
        if call in MAKING and target is not None:
            waits.note(f"{call.__name__} of the host's numbers")
        if call is Tensor.to:
            target = target or next((each for each in args[1:] if waits.near(each)), None)
            if "cpu" in given and waits.near(args[0]):
                waits.note("to the host")
            if target is not None and not waits.near(args[0]) and not _is_helper():
                waits.note("to the device from memory that is not pinned")
        result = call(*args, **kwargs)
        if target is not None:
            waits.add(each for each in tree_leaves(result) if isinstance(each, Tensor))
        return result


class _Operators(TorchDispatchMode):
    """Operators, with the tensors that they are given."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self._waits = waits

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs, waits = kwargs or {}, self._waits
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        near = any(waits.near(each) for each in tensors)
        if near:
            name = operator.overloadpacket.__name__
            masks = tree_leaves(args[1]) if name in ("index", "index_put_", "_index_put_impl_") else []
            masked = any(isinstance(each, Tensor) and each.dtype in (torch.bool, torch.uint8) for each in masks)
            fills = name != "index" and masked and args[2].numel() == 1  # becomes masked_fill
            if name in READING or (masked and not fills):
                waits.note(name)
            # A number of the host goes along with a kernel; an array does not, and a copy of it is waited for.
            if any(each.ndim and not waits.near(each) for each in tensors):
                waits.note(f"{name} of the device's and the host's numbers")
        result = operator(*args, **kwargs)
        if near:
            waits.add(each for each in (*tensors, *tree_leaves(result)) if isinstance(each, Tensor) and each.ndim)
            waits.add(each for each in tree_leaves(result) if isinstance(each, Tensor))
        return result


def _is_helper() -> bool:
    """Whether `to_device`, which pins on a GPU, calls."""
    frame = sys._getframe(2)
    return frame.f_code.co_name == "to_device"
