"""A GPU that is not there: `FakeTensorMode`, whose tensors claim a device and have a shape and a type but no numbers.

torch refuses operations whose tensors claim different devices, as a GPU would. What a program reads from the device
does not exist here, so stand-ins answer: conditions hold, counts are 1, and as many elements of a mask count as
`share` says. Each such answer is noted, for on a GPU the host would wait for it.
"""

import pkgutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._pytree import tree_leaves

from tests.gpuless.engine import Engine

GPU = torch.device("cuda", 0)
ATEN = torch.ops.aten


class Pretence(FakeTensorMode):
    """While entered, tensors are fake.

    Args:
        share: of a mask's elements that count as true, where an operation picks them.

    Attributes:
        waits: operations whose result the host read, in order.
        watchers: called with each operation, its arguments and its result.
        launched: times that each Triton kernel was.
        moved: bytes that each of them would read and write.
    """

    def __init__(self, share: float = 0.5) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.share = share
        self.waits: list[str] = []
        self.watchers: list = []
        self.launched: Counter[str] = Counter()
        self.moved: Counter[str] = Counter()

    avoid_device_init = True  # also where a test lets `torch.cuda.is_available` say yes

    def dispatch(self, func, types, args=(), kwargs=None):
        """Answer what has no answer without numbers; leave all else to torch."""
        kwargs = kwargs or {}
        if func.overloadpacket is ATEN.to:  # arrives whole in inference mode
            with self:
                return func.decompose(*args, **kwargs)
        if _stays_on_host(func, args, kwargs):
            with no_dispatch():
                return func(*args, **kwargs)
        if func is ATEN._local_scalar_dense.default and args[0].device.type == "cuda":
            self.waits.append("item")
            return {torch.bool: True}.get(args[0].dtype, 1.0 if args[0].dtype.is_floating_point else 1)
        if func is ATEN._local_scalar_dense.default and (known := args[0]).constant is None:
            return known.dtype == torch.bool or 1
        if func is ATEN.nonzero.default:
            self.waits.append("nonzero")
            return args[0].new_empty((self._picked(args[0]), args[0].ndim), dtype=torch.int64)
        if func is ATEN.index.Tensor and any(_is_mask(index) for index in args[1]):
            self.waits.append("index by a mask")
            args = (args[0], [self._places(index) if _is_mask(index) else index for index in args[1]])
        if func.overloadpacket in (ATEN._fused_sgd_, ATEN._fused_adamw_):  # in place, and torch has no form of them
            _together([*tree_leaves(args), *tree_leaves(kwargs)])
            return None
        out = super().dispatch(func, types, args, kwargs)
        if self._crosses(func, args, out):
            self.waits.append("copy to the host")
        for watch in self.watchers:
            watch(func, args, kwargs, out)
        return out

    def _picked(self, mask: Tensor) -> int:
        return int(mask.numel() * self.share)

    def _places(self, mask: Tensor) -> Tensor:
        if mask.ndim != 1:
            raise NotImplementedError("masks of one dimension only")
        return mask.new_empty(self._picked(mask), dtype=torch.int64)

    @staticmethod
    def _crosses(func, args, out) -> bool:
        if func is not ATEN._to_copy.default:
            return False
        return args[0].device.type == "cuda" and out.device.type == "cpu"


def _stays_on_host(func, args, kwargs) -> bool:
    """Whether an operation is one of real numbers: of labels, and of counters."""
    asked = kwargs.get("device")
    if asked is not None and torch.device(asked).type != "cpu":
        return False
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    if not tensors:
        return func is ATEN.zeros.default and not args[0]
    return not any(isinstance(tensor, FakeTensor) for tensor in tensors)


def _is_mask(index: object) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


@contextmanager
def pretence(share: float = 0.5) -> Iterator[Pretence]:
    """Within it tensors are fake; those on the CPU go through torch's own engine."""
    with ExitStack() as stack:
        for target, value in _STAND_INS.items():
            stack.enter_context(mock.patch(target, value))
        made = Pretence(share)
        for target, looks in _KERNELS.items():
            stack.enter_context(mock.patch(target, _Kernel(pkgutil.resolve_name(target), looks, made)))
        yield stack.enter_context(made)


@contextmanager
def pretended_gpu(share: float = 0.5) -> Iterator[Pretence]:
    """Within it, `torch.device("cuda", 0)` can be computed on, as far as shapes, types and devices go."""
    engine = Engine()
    with mock.patch("torch.autograd.Variable._execution_engine", engine), pretence(share) as made, engine.keeping():
        yield made


_GENERATOR = torch.Generator
_NUMPY = Tensor.numpy


def _numpy(tensor: Tensor, **options: object) -> np.ndarray:
    """An array of ones: finite, true, the first class or its neighbour."""
    if not isinstance(tensor, FakeTensor):
        return _NUMPY(tensor, **options)
    if tensor.device.type != "cpu":
        raise TypeError(f"can't convert {tensor.device} device type tensor to numpy")
    return np.ones(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


def _apply(module: nn.Module, fn, recurse: bool = True) -> nn.Module:
    """`nn.Module._apply`, but with new parameters: those of fake tensors cannot be exchanged in place."""
    for child in module.children() if recurse else ():
        _apply(child, fn)
    with torch.no_grad():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(fn(parameter), parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = fn(buffer)
    return module


class _Generator:
    """In place of `torch.Generator`: the host's for every device."""

    def __new__(cls, device: object = "cpu") -> torch.Generator:
        return _GENERATOR("cpu")


class _Event:
    """In place of `torch.cuda.Event`."""

    def __init__(self, **options: object) -> None: ...
    def record(self, *stream: object) -> None: ...
    def wait(self, *stream: object) -> None: ...
    def synchronize(self) -> None: ...
    def query(self) -> bool:
        return True

    def elapsed_time(self, other: object) -> float:
        return 1.0


class _AtOnce:
    """In place of a pool of threads, which do not know that they pretend."""

    def __init__(self, *args: object, **options: object) -> None: ...

    def submit(self, work, *args):
        done: Future = Future()
        done.set_result(work(*args))
        return done

    def shutdown(self, wait: bool = True) -> None: ...


def _together(given) -> None:
    """Refuse tensors that are not all on the GPU."""
    strayed = [each.device for each in given if isinstance(each, Tensor) and each.device.type != "cuda"]
    assert not strayed, f"given tensors on {strayed}"


class _Kernel:
    """In place of a Triton kernel: launches nothing, and looks at what it is given.

    Args:
        kernel: whose place it takes.
        looks: called with the arguments by their names in the kernel, whose declarations say types and shapes; gives
            the bytes that it would move.
        made: counts.
    """

    def __init__(self, kernel, looks, made: Pretence) -> None:
        self._name, self._names = kernel.__name__, kernel.arg_names
        self._looks, self._made = looks, made

    def __getitem__(self, grid):
        def launch(*args, num_warps, num_stages=None, **constants):
            _together(args)
            given = SimpleNamespace(**dict(zip(self._names, args, strict=False)), **constants)
            assert set(vars(given)) == set(self._names)
            assert all(size > 0 for size in grid)
            strided = [n for n, each in vars(given).items() if isinstance(each, Tensor) and not each.is_contiguous()]
            assert not strided, f"{strided} have gaps, which the kernel does not know"
            self._made.moved[self._name] += self._looks(given)
            self._made.launched[self._name] += 1

        return launch


def _weights(given: SimpleNamespace) -> int:
    """Centers come from memory once: tiles of the batch share them in the cache."""
    rows, samples, width = given.classes_total * given.K, given.samples_total, given.width
    tiles = -(-given.classes_total * given.KP // given.BLOCK_N)
    _is(given.centers, torch.bfloat16, rows, width)
    _is(given.queries, torch.bfloat16, samples, width)
    _is(given.targets, torch.int32, given.LABELS, samples)
    _is(given.totals, torch.float32, tiles, samples)
    if given.NORMALISED:
        _is(given.inverse, torch.float32, rows)
    if given.LIFTED:
        _is(given.bounds, torch.float32, samples)
        _is(given.base, torch.float32)
    if not given.LARGEST:
        _is(given.relative_to, torch.float32, samples)
        _is(given.out, torch.bfloat16, rows, samples)
    written = [given.totals] if given.LARGEST else [given.totals, given.out]
    read = [given.centers, given.queries, given.targets, *([given.inverse] if given.NORMALISED else [])]
    return sum(each.nbytes for each in (*read, *written))


def _update(given: SimpleNamespace) -> int:
    """Rows and state are read and written, each once."""
    table = tuple(given.centers.shape)
    assert table[1:] == (given.K * given.width,)
    stored = torch.bfloat16 if given.BFLOAT16 else torch.float32
    _is(given.centers, stored, *table)
    if given.OPTIMIZER in ("momentum", "adamw"):
        _is(given.first_state, stored, *table)
    if given.OPTIMIZER == "rowwise_adagrad":
        _is(given.first_state, torch.float32, table[0], given.K)
    if given.OPTIMIZER == "adamw":
        _is(given.second_state, stored, *table)
        assert (given.updates.dtype, given.updates.numel()) == (torch.float32, table[0])
    count = table[0]
    if given.INDEXED:
        count = len(given.places)
        _is(given.places, torch.int64, count)
    _is(given.gradient, torch.float32, count * given.K, given.width)
    if given.MEASURE:
        _is(given.squares, torch.float32, count)
    if given.ASKED:
        _is(given.proceed, torch.bool)
    states = {"sgd": [], "adamw": [given.first_state, given.second_state]}.get(given.OPTIMIZER, [given.first_state])
    return given.gradient.nbytes + 2 * count * sum(each.nbytes // table[0] for each in (given.centers, *states))


def _is(tensor: Tensor, dtype: torch.dtype, *shape: int) -> None:
    found = tensor.dtype, tuple(tensor.shape)
    assert found == (dtype, shape), f"{found}, the kernel reads {dtype} {shape}"


_KERNELS = {
    "dist_train.head.kernel_weights.weights_kernel": _weights,
    "dist_train.head.fused_update.update_kernel": _update,
}
_STAND_INS = {
    "torch.Generator": _Generator,
    "torch.Tensor.numpy": _numpy,
    "torch.Tensor.pin_memory": lambda host: host,
    "torch.nn.Module._apply": _apply,
    "torch.cuda.Event": _Event,
    "torch._subclasses.fake_tensor.init_gpu_context": lambda *device: None,
    "torch.cuda.amp.common.amp_definitely_not_available": lambda: False,
    "torch.cuda.is_bf16_supported": lambda **options: True,
    "dist_train.head.kernels.triton_runs": lambda: True,
    "torch.cuda.get_device_capability": lambda *args: (9, 0),
    "dist_train.head.storage.ThreadPoolExecutor": _AtOnce,
    "dist_train.head.open_rows.fill_normal": lambda *args: None,  # in thousands of small operations
}
