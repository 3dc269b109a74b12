"""A network in an ONNX file, checked before it runs: bounded in size, whole in one file, of standard operators."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_train.errors import UserError, WorkError
from dist_train.runtime.extras import require
from dist_train.runtime.files import first_fault, read_bounded
from dist_train.runtime.text import first_line, shown_start

MOST_BYTES = 1 << 29  # the largest published RetinaFace has 110 MB
MOST_SIDE_PX = 4096
CELL_PX = 32  # sides of the input are multiples of the widest stride
_OWN_PART = "headcount.mtcnn."  # begins the kind of what `prep train-detector --onnx` writes
_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})  # of operators that come with onnxruntime
_WANTED = "a detector of faces is wanted: SCRFD, RetinaFace or YuNet"
_MOST_OUTPUTS = 64
_MOST_BATCH = 256  # pictures


class Graph:
    """A network that takes pictures [B, 3, H, W].

    Args:
        path: of the ONNX file.
        device: cpu or cuda.

    Attributes:
        path: of the file.
        digest: SHA-256 of the file.
        batch: pictures that the network takes at once; None: any number.
        side: height and width that it takes; None: any multiples of 32.
        names: of its outputs.

    Raises:
        UserError: missing, too large, not ONNX, in several files, with operators of its own, or of another input.
    """

    def __init__(self, path: Path, device: str) -> None:
        require("export", f"detector {path}")
        self.path = path
        data = _read(path)
        self.digest = hashlib.sha256(data).hexdigest()
        _check_parts(path, data)
        self._session = _open_session(path, data, device)
        entries, outputs = self._session.get_inputs(), self._session.get_outputs()
        shape = list(entries[0].shape) if len(entries) == 1 else []
        if len(shape) != 4 or shape[1] != 3 or entries[0].type != "tensor(float)":
            found = ", ".join(f"{shown_start(each.name)} {each.type} {each.shape}" for each in entries[:8])
            raise UserError(
                f"detector {path}: takes {found}; expected one input of pictures, float32 [B, 3, H, W]; {_WANTED}"
            )
        fixed = [axis if isinstance(axis, int) else None for axis in shape]
        self._input = entries[0].name
        self.batch = fixed[0]
        if self.batch is not None and not 0 < self.batch <= _MOST_BATCH:
            raise UserError(f"detector {path}: takes {shape}; expected 1 to {_MOST_BATCH} pictures at once; {_WANTED}")
        self.side: tuple[int, int] | None = None
        if fixed[2] is not None and fixed[3] is not None:
            self.side = fixed[2], fixed[3]
            if any(side % CELL_PX or not 0 < side <= MOST_SIDE_PX for side in self.side):
                raise UserError(
                    f"detector {path}: takes {shape}; expected multiples of {CELL_PX} up to {MOST_SIDE_PX}; {_WANTED}"
                )
        self.names = [each.name for each in outputs]
        if len(self.names) > _MOST_OUTPUTS:
            raise UserError(f"detector {path}: {len(self.names)} outputs; {_WANTED}")

    def run(self, values: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """The outputs for an input [B, 3, H, W].

        Raises:
            WorkError: onnxruntime failed.
        """
        try:
            outputs = self._session.run(None, {self._input: values})
        except Exception as error:  # onnxruntime's own kinds have no common base
            raise WorkError(f"detector {self.path}: onnxruntime: {first_line(error)}") from error
        return [np.asarray(output) for output in outputs]


def per_picture(outputs: Sequence[NDArray[np.float32]], pictures: int) -> list[list[NDArray[np.float32]]] | None:
    """Outputs [rows, numbers] of each picture; None where they cannot be told apart.

    Args:
        outputs: [B, rows, numbers], or of one picture [rows, numbers].
        pictures: B.
    """
    if pictures == 1:
        outputs = [output[None] if output.ndim == 2 else output for output in outputs]
    if any(output.ndim != 3 or len(output) != pictures or output.dtype.kind != "f" for output in outputs):
        return None
    return [[output[number] for output in outputs] for number in range(pictures)]


def _read(path: Path) -> bytes:
    try:
        return read_bounded(path, MOST_BYTES)
    except (OSError, ValueError) as error:
        raise UserError(f"detector {path}: {first_fault(error)}") from error


def _check_parts(path: Path, data: bytes) -> None:
    """Refuse a part of a detector, and a file that names other files, or operators that are loaded from a library."""
    import onnx

    try:
        model = onnx.ModelProto.FromString(data)
    except Exception as error:  # protobuf's own kind, of whichever of its implementations
        raise UserError(f"detector {path}: not ONNX ({first_line(error)})") from error
    if (kind := next((each.value for each in model.metadata_props if each.key == "kind"), "")).startswith(_OWN_PART):
        raise UserError(
            f"detector {path}: is one network of a trained cascade, {shown_start(kind)}; give the .safetensors that it "
            "was exported from"
        )
    nodes = [node for function in model.functions for node in function.node]
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in _tensors(model.graph, nodes)):
        raise UserError(f"detector {path}: keeps weights in other files; save it as one file (onnx.save_model)")
    if foreign := sorted({each.domain for each in model.opset_import} - _DOMAINS):
        raise UserError(f"detector {path}: needs operators of {shown_start(foreign[0])}, which are not standard")


def _tensors(graph: Any, nodes: Sequence[Any]) -> Iterator[Any]:  # noqa: ANN401 - messages of onnx have no types
    """All constants of a graph, of the graphs inside of it, and of further nodes."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in (*graph.node, *nodes):
        for value in node.attribute:
            yield from (value.t, *value.tensors, value.sparse_tensor.values)
            for inner in (value.g, *value.graphs):
                yield from _tensors(inner, [])


def _open_session(path: Path, data: bytes, device: str) -> Any:  # noqa: ANN401 - onnxruntime has no types
    import onnxruntime
    import torch

    here = onnxruntime.get_available_providers()
    provider = "CUDAExecutionProvider" if device.startswith("cuda") else "CPUExecutionProvider"
    if provider not in here:
        raise UserError(
            f"device {device!r}: onnxruntime here has {', '.join(here)} alone; install onnxruntime-gpu, or use cpu"
        )
    index = device.partition(":")[2]
    chosen = (provider, {"device_id": index}) if index.isdigit() else provider
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # an error is raised too, and said once
    options.intra_op_num_threads = torch.get_num_threads()  # which the workers of a job are told
    try:
        session = onnxruntime.InferenceSession(data, options, providers=[chosen])
    except Exception as error:  # onnxruntime's own kinds have no common base
        raise UserError(f"detector {path}: onnxruntime cannot load it: {first_line(error)}") from error
    if provider not in session.get_providers():  # a provider whose libraries do not load is left out without a word
        raise UserError(f"device {device!r}: onnxruntime goes without {provider}: its CUDA libraries are not there")
    return session
