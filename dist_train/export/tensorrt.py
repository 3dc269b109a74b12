"""TensorRT engines in float16, built from the backbone by way of ONNX and run on torch's CUDA tensors.

Written against the Python API of TensorRT 10 and 11 (https://docs.nvidia.com/deeplearning/tensorrt); it has not run on
a GPU. Version 11 has no FP16 switch any more: a network's types are those of its ONNX. So the weights are turned to
float16 before the ONNX is made, and the network is strongly typed in both versions.
"""

import importlib
import logging
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from dist_train.errors import UserError, WorkError
from dist_train.export.convention import Convention
from dist_train.export.onnx import half_inside, onnx_program
from dist_train.export.prelu import spread_prelu
from dist_train.export.runtime import INPUT_NAME, OUTPUT_NAME
from dist_train.runtime.written import write_failures, written

logger = logging.getLogger(__name__)

OPSET = 18  # what version 10's parser knows whole
OLDEST = 10
USUAL_BATCH, LARGEST_BATCH = 32, 256
_WORKSPACE_BYTES = 4 << 30  # scratch memory that a layer may ask for


def open_tensorrt() -> ModuleType:
    """The `tensorrt` package, where it can work here.

    Raises:
        UserError: what is missing, and how to get it.
    """
    missing = []
    trt = None
    try:
        trt = importlib.import_module("tensorrt")
        found = str(getattr(trt, "__version__", "0"))
        if int(found.split(".")[0]) < OLDEST:
            missing.append(f"tensorrt is {found}, expected {OLDEST} or newer (`pip install --upgrade tensorrt`)")
    except ImportError as error:
        missing.append(f"the package tensorrt (`pip install tensorrt`; {error})")
    if not torch.cuda.is_available():
        missing.append("a CUDA GPU with its driver (torch sees none)")
    if missing or trt is None:
        raise UserError(
            f"a TensorRT engine cannot be built here; missing: {'; '.join(missing)}. "
            "An engine fits only the kind of GPU that it was built on: run this export on the machine that will use "
            "it, or leave --tensorrt out and deploy model.onnx"
        )
    return trt


def build_engine(backbone: nn.Module, convention: Convention, path: Path) -> None:
    """Build a float16 engine for batches of 1 to 256 float32 pictures and write it, by rename.

    Args:
        backbone: in evaluation mode; left as it is.
        convention: what the engine takes; float32 pictures.
        path: of the engine.

    Raises:
        UserError: TensorRT or a GPU is missing.
        WorkError: TensorRT refused the network, or the file cannot be written.
    """
    trt = open_tensorrt()
    log = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(half_onnx(backbone, convention.image_size).SerializeToString()):
        reasons = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise WorkError(f"export to {path}: TensorRT cannot read the network: {reasons}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, _WORKSPACE_BYTES)
    profile = builder.create_optimization_profile()
    picture = (3, convention.image_size, convention.image_size)
    profile.set_shape(INPUT_NAME, (1, *picture), (USUAL_BATCH, *picture), (LARGEST_BATCH, *picture))
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise WorkError(f"export to {path}: TensorRT built no engine; its own messages above say why")
    with write_failures(f"export to {path}"), written(path) as file:
        file.write(engine)
    logger.info("wrote %s: TensorRT %s, %.1f MB", path, trt.__version__, path.stat().st_size / 1e6)


def half_onnx(backbone: nn.Module, image_size: int) -> onnx.ModelProto:
    """The backbone as ONNX with float16 weights and arithmetic, float32 at both ends."""
    model, _ = onnx_program(half_inside(backbone), image_size, opset=OPSET)
    spread_prelu(model)
    return model


class TensorRtModel:
    """An engine as an embedding function: images [B, 3, S, S] in [-1, 1] -> embeddings [B, D] on the GPU.

    Args:
        path: of an engine that `build_engine` wrote, on this kind of GPU.
        convention: what it takes.

    Raises:
        UserError: TensorRT or a GPU is missing, or the engine is for another GPU or version.
    """

    def __init__(self, path: Path, convention: Convention) -> None:
        trt = open_tensorrt()
        self.path, self.convention = path, convention
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))  # must outlive the engine
        self._engine: Any = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise UserError(f"engine {path}: TensorRT {trt.__version__} cannot load it here; export it on this machine")
        self._context: Any = self._engine.create_execution_context()

    def __call__(self, images: Tensor) -> Tensor:
        """Embeddings float32 [B, D] of images float32 [B, 3, S, S]; more than 256 go in parts.

        Raises:
            WorkError: TensorRT failed.
        """
        return torch.cat([self._run(part) for part in images.split(LARGEST_BATCH)])

    def _run(self, images: Tensor) -> Tensor:
        entry = images.to("cuda", torch.float32).contiguous()
        result = torch.empty(len(entry), self.convention.embedding_dim, device=entry.device)
        context = self._context
        stream = torch.cuda.current_stream()
        done = (
            context.set_input_shape(INPUT_NAME, tuple(entry.shape))
            and context.set_tensor_address(INPUT_NAME, entry.data_ptr())
            and context.set_tensor_address(OUTPUT_NAME, result.data_ptr())
            and context.execute_async_v3(stream.cuda_stream)
        )
        if not done:
            raise WorkError(f"engine {self.path}: TensorRT failed on {list(entry.shape)}; its own messages say why")
        stream.synchronize()  # `entry` must live until then
        return result
