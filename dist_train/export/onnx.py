"""Writing a backbone as ONNX, and proving that onnxruntime gives the same embeddings."""

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from dist_train.errors import UserError, WorkError
from dist_train.export.convention import Convention
from dist_train.export.prelu import spread_prelu
from dist_train.export.runtime import INPUT_NAME, OUTPUT_NAME, OnnxModel
from dist_train.export.trace import HalfInside, Scaling, example_input, free_batch, quiet_exporter
from dist_train.runtime.version import version_of
from dist_train.runtime.written import write_failures, written

__all__ = ["OnnxExport", "compare_onnx", "export_onnx", "onnx_program", "save_onnx"]

logger = logging.getLogger(__name__)

OPSET = 18


@dataclass(frozen=True)
class OnnxExport:
    """What was written.

    Attributes:
        path: of the file.
        opset: ONNX operator set.
        convention: what the model takes and gives.
        size_bytes: of the file.
    """

    path: Path
    opset: int
    convention: Convention
    size_bytes: int


def export_onnx(
    backbone: nn.Module,
    image_size: int,
    path: Path,
    *,
    normalize_inside: bool = False,
    opset: int = OPSET,
    origin: Mapping[str, str] | None = None,
    batch: int | None = None,
) -> OnnxExport:
    """Write `backbone` to one ONNX file, by rename; its batch axis is free unless `batch` says how many.

    The input is `images`, the output `embeddings` [B, D], raw. The file's metadata states the input convention, so
    that whoever deploys it need not guess. The backbone is exported in evaluation mode and left as it was.

    Args:
        backbone: images [B, 3, S, S] in [-1, 1] -> embeddings [B, D].
        image_size: S, in pixels.
        path: of the file.
        normalize_inside: take uint8 pictures [B, S, S, 3], red first, and scale them in the model.
        opset: ONNX operator set.
        origin: where the weights come from (run, step), for the metadata.
        batch: number of pictures that the model takes, for accelerators that know no other; None for any.

    Raises:
        WorkError: the network has an operation without an ONNX form, or the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)  # before the work: an unwritable place is found at once
        model, embedding_dim = onnx_program(
            backbone, image_size, normalize_inside=normalize_inside, opset=opset, batch=batch
        )
    except OSError as error:
        raise WorkError(f"export to {path}: cannot be written: {error.strerror or error}") from error
    except torch.onnx.errors.OnnxExporterError as error:
        raise WorkError(f"export to {path}: {cause_of(error)}") from error
    spread_prelu(model)
    convention = Convention.of_ours(image_size, embedding_dim, "uint8" if normalize_inside else "float32")
    if batch is not None:
        origin = {"batch": str(batch)} | dict(origin or {})
    producer = f"headcount {version_of('headcount')}"
    metadata = convention.to_metadata() | {"opset": str(opset), "producer": producer} | dict(origin or {})
    onnx.helper.set_model_props(model, metadata)
    save_onnx(model, path)
    size = path.stat().st_size
    logger.info("wrote %s: opset %d, %.1f MB", path, opset, size / 1e6)
    return OnnxExport(path, opset, convention, size)


def half_inside(backbone: nn.Module) -> nn.Module:
    """A copy of a backbone with float16 weights and arithmetic, between float32 pictures and float32 embeddings."""
    return HalfInside(copy.deepcopy(backbone).to(torch.float16)).eval()


def cause_of(error: BaseException) -> str:
    """What an exporter stopped at, in a line: it wraps the first error in its own, which name only the stage."""
    first = error
    while first.__cause__ is not None:
        first = first.__cause__
    lines = [line.strip() for line in str(first).splitlines() if line.strip()]
    return f"{type(first).__name__}: {lines[0]}" if lines else type(first).__name__


def save_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Write a model to one file, by rename.

    Raises:
        WorkError: it cannot be written.
    """
    with write_failures(f"export to {path}"), written(path) as file:
        onnx.save_model(model, file)


def onnx_program(
    backbone: nn.Module,
    image_size: int,
    *,
    normalize_inside: bool = False,
    opset: int = OPSET,
    batch: int | None = None,
) -> tuple[onnx.ModelProto, int]:
    """The backbone in evaluation mode as an ONNX model, and the length of its embeddings.

    The exporter folds each BatchNorm that follows a convolution or the last layer into it.

    Raises:
        OnnxExporterError: the network has an operation without an ONNX form.
    """
    was_training = backbone.training
    module = Scaling(backbone.eval()) if normalize_inside else backbone.eval()
    example = example_input(backbone, image_size, normalize_inside, batch)
    try:
        with torch.no_grad(), quiet_exporter():
            embedding_dim = int(module(example).shape[1])
            program = torch.onnx.export(
                module.eval(),
                (example,),
                dynamo=True,
                verbose=False,
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                dynamic_shapes=free_batch() if batch is None else None,
                opset_version=opset,
                external_data=False,
            )
    finally:
        backbone.train(was_training)
    return cast(torch.onnx.ONNXProgram, program).model_proto, embedding_dim


def compare_onnx(path: Path, backbone: nn.Module, images: Tensor, batch_size: int = 64) -> tuple[float, float]:
    """How far onnxruntime's embeddings are from PyTorch's.

    Args:
        path: of the ONNX file.
        backbone: the original.
        images: real pictures, float32 [N, 3, S, S] in [-1, 1].
        batch_size: pictures per forward pass.

    Returns:
        Largest absolute difference of an element, and smallest cosine between the two embeddings of a picture.

    Raises:
        UserError: no pictures, or of another size than the model's.
        WorkError: embeddings that are not finite.
    """
    if not len(images):
        raise UserError("comparing ONNX with PyTorch needs at least one picture")
    model = OnnxModel(path, as_written=True)
    was_training = backbone.training
    backbone.eval()
    where = next((p.device for p in backbone.parameters()), images.device)
    theirs, ours = [], []
    with torch.inference_mode():
        for part in images.split(batch_size):
            theirs.append(model(part))
            ours.append(backbone(part.to(where)).float().cpu())
    backbone.train(was_training)
    left, right = torch.cat(theirs).double(), torch.cat(ours).double()
    difference = float((left - right).abs().max())
    if not np.isfinite(difference):
        raise WorkError(f"{path}: embeddings are not finite; the model is damaged or training diverged")
    return difference, float(nn.functional.cosine_similarity(left, right).min())
