"""What is timed: a model by its file, opened for a number of threads."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dist_train.errors import UserError
from dist_train.evaluate.batches import EmbedFn
from dist_train.evaluate.models import load_model
from dist_train.export.convention import Convention, Stated
from dist_train.export.runtime import OnnxModel

PYTORCH, ONNX, TENSORRT = "pytorch", "onnx", "tensorrt"


@dataclass(frozen=True)
class Contender:
    """A model that takes part.

    Attributes:
        name: for tables.
        form: what computes it, e.g. `onnx int8 static`.
        image_size: side S of its pictures in pixels.
        size_bytes: of its file; None of a run, which holds more than a model.
        open: number of threads -> function that embeds pictures [B, 3, S, S] in [-1, 1]; what an earlier call gave is
            not used any more.
    """

    name: str
    form: str
    image_size: int
    size_bytes: int | None
    open: Callable[[int], EmbedFn]


def contender(path: Path, device: torch.device, stated: Stated) -> Contender:
    """Open a model to see what it is.

    Args:
        path: a run directory, a checkpoint, a `.safetensors`, `.onnx` or `.engine` file; beside the last the `.onnx`
            of the same export, which says what it takes.
        device: where PyTorch computes; onnxruntime chooses for itself.
        stated: what the user says of ONNX files that do not say what they take.

    Raises:
        UserError: nothing there, or not a model.
        WorkError: a damaged checkpoint.
    """
    if path.suffix == ".onnx":
        return _of_onnx(path, stated)
    if path.suffix == ".engine":
        return _of_engine(path)
    model = load_model(path, device)

    def opened(threads: int) -> EmbedFn:
        torch.set_num_threads(threads)
        return model.embed

    size = path.stat().st_size if path.is_file() else None
    return Contender(model.name, f"{PYTORCH} float32", model.image_size, size, opened)


def _of_onnx(path: Path, stated: Stated) -> Contender:
    first = OnnxModel(path, 1, stated)
    size = path.stat().st_size
    with suppress(OSError):  # weights in files beside it
        size += sum(each.stat().st_size for each in path.parent.glob(f"{path.name}.data"))
    return Contender(
        path.stem,
        f"{ONNX} {_kind(path, first)}",
        first.convention.image_size,
        size,
        lambda threads: OnnxModel(path, threads, stated),
    )


def _kind(path: Path, model: OnnxModel) -> str:
    """int8, float16 or float32, as the file says or its graph shows."""
    if said := model.metadata.get("quantization"):
        return said
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    if any("QuantizeLinear" in node.op_type or node.op_type.endswith("Integer") for node in graph.node):
        return "int8"
    halves = sum(each.data_type == onnx.TensorProto.FLOAT16 for each in graph.initializer)
    return "float16" if 2 * halves > len(graph.initializer) else "float32"


def _of_engine(path: Path) -> Contender:
    from dist_train.export.tensorrt import TensorRtModel

    if not path.is_file():
        raise UserError(f"model {path}: no such file")
    beside = path.with_suffix(".onnx")
    if not beside.is_file():
        raise UserError(f"engine {path}: {beside.name} is not beside it, which says what it takes; export both again")
    stated = OnnxModel(beside, 1).convention
    plain = Convention.of_ours(stated.image_size, stated.embedding_dim)
    engine = TensorRtModel(path, plain)
    return Contender(path.stem, f"{TENSORRT} float16", plain.image_size, path.stat().st_size, lambda _: engine)


def noise(batch: int, image_size: int) -> Tensor:
    """Pictures of random values float32 [B, 3, S, S] in [-1, 1): zeros would be computed faster on some machines."""
    return torch.rand(batch, 3, image_size, image_size, generator=torch.Generator().manual_seed(0)) * 2 - 1
