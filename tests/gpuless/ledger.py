"""Memory of a device that is not there: which storages live, of what part, and the most at a time."""

import sys
import weakref
from collections import Counter
from collections.abc import Callable

from torch import Tensor, UntypedStorage
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves

from tests.gpuless.pretence import Pretence


class Ledger:
    """Counts the bytes of a device's storages as operations make them and Python lets them go.

    Args:
        pretence: whose operations are watched.
        part_of: names the part of a new storage, from the operation's name, its arguments, its result, and the frame of
            the product's code that asked for it, e.g. `head/softmax.py:forward`.

    Attributes:
        now: bytes by part.
        peak: the most of each part.
        peak_total: the most of all.
        at_peak: bytes by part at that moment.
    """

    def __init__(self, pretence: Pretence, part_of: Callable[[str, tuple, Tensor, str], str]) -> None:
        self._part_of = part_of
        self._known: dict[int, tuple[weakref.ref, str, int]] = {}
        self.now: Counter[str] = Counter()
        self.begin()
        pretence.watchers.append(self._watch)

    def begin(self) -> None:
        """Forget the peaks."""
        self.peak: Counter[str] = Counter(self.now)
        self.peak_total, self.at_peak = self.now.total(), Counter(self.now)

    def call(self, part: str, tensors: list[Tensor]) -> None:
        """Give the storages of tensors to a part, whatever they were counted as; copies by `deepcopy` are new here."""
        for tensor in tensors:
            if tensor.untyped_storage()._cdata in self._known:
                self._forget(tensor.untyped_storage()._cdata)
            self._add(tensor.untyped_storage(), part)

    def _watch(self, func, args, kwargs, out) -> None:
        for tensor in tree_leaves(out):
            if isinstance(tensor, FakeTensor) and tensor.device.type == "cuda":
                self._see(func, args, tensor)

    def _see(self, func, args, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._known:
            self._add(storage, self._part_of(func._schema.name.removeprefix("aten::"), args, tensor, asking()))

    def _add(self, storage: UntypedStorage, part: str) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._known[key] = (weakref.ref(storage, lambda _: self._forget(key)), part, size)
        self.now[part] += size
        self.peak[part] = max(self.peak[part], self.now[part])
        if self.now.total() > self.peak_total:
            self.peak_total, self.at_peak = self.now.total(), Counter(self.now)

    def _forget(self, key: int) -> None:
        _, part, size = self._known.pop(key)
        self.now[part] -= size


def asking() -> str:
    """The innermost frame of the product's code below `dist_train`, but for its tools in `runtime`."""
    frame = sys._getframe(1)
    while frame is not None:
        _, found, path = frame.f_code.co_filename.rpartition("/dist_train/")
        if found and not path.startswith("runtime/"):
            return f"{path}:{frame.f_code.co_name}"
        frame = frame.f_back
    return ""
