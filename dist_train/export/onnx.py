"""Writing a backbone as ONNX, and proving that onnxruntime gives the same embeddings."""

import importlib.metadata
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from dist_train.errors import UserError, WorkError
from dist_train.export.runtime import INPUT_NAME, OUTPUT_NAME, Convention, OnnxModel

__all__ = ["OnnxExport", "compare_onnx", "export_onnx"]

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


class _Normalized(nn.Module):
    """A backbone that takes pictures as decoders give them: uint8 [B, S, S, 3]."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        scaled = images.permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1  # [B, S, S, 3] -> [B, 3, S, S]
        return cast(Tensor, self.backbone(scaled))


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep the exporter's reports about its own passes out of our log."""
    loggers = [logging.getLogger(name) for name in ("onnx_ir", "onnxscript", "torch.onnx")]
    levels = [each.level for each in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for each in loggers:
            each.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for each, level in zip(loggers, levels, strict=True):
                each.setLevel(level)


def export_onnx(
    backbone: nn.Module, image_size: int, path: Path, *, normalize_inside: bool = False, opset: int = OPSET
) -> OnnxExport:
    """Write `backbone` to one ONNX file with a free batch axis, by rename.

    The input is `images`, the output `embeddings` [B, D], raw. The file's metadata states the input convention, so
    that whoever deploys it need not guess. The backbone is exported in evaluation mode and left as it was.

    Args:
        backbone: images [B, 3, S, S] in [-1, 1] -> embeddings [B, D].
        image_size: S, in pixels.
        path: of the file.
        normalize_inside: take uint8 pictures [B, S, S, 3], red first, and scale them in the model.
        opset: ONNX operator set.

    Raises:
        WorkError: the network has an operation without an ONNX form, or the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    was_training = backbone.training
    try:
        path.parent.mkdir(parents=True, exist_ok=True)  # before the work: an unwritable place is found at once
        program, embedding_dim = _translate(backbone.eval(), image_size, normalize_inside, opset)
        convention = Convention(image_size, embedding_dim, "uint8" if normalize_inside else "float32")
        program.model.metadata_props.update(
            convention.to_metadata() | {"producer": f"headcount {importlib.metadata.version('headcount')}"}
        )
        program.save(temporary, external_data=False)
        temporary.replace(path)
    except OSError as error:
        raise WorkError(f"export to {path}: cannot be written: {error.strerror or error}") from error
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error).strip().splitlines()
        raise WorkError(f"export to {path}: {reason[0] if reason else type(error).__name__}") from error
    finally:
        backbone.train(was_training)
        with suppress(OSError):
            temporary.unlink()
    size = path.stat().st_size
    logger.info("wrote %s: opset %d, %.1f MB", path, opset, size / 1e6)
    return OnnxExport(path, opset, convention, size)


def _translate(
    backbone: nn.Module, image_size: int, normalize_inside: bool, opset: int
) -> tuple[torch.onnx.ONNXProgram, int]:
    """The backbone as an ONNX program, and the length of its embeddings."""
    module = _Normalized(backbone) if normalize_inside else backbone
    where = next((p.device for p in backbone.parameters()), torch.device("cpu"))
    # Two pictures: a batch of one would be taken for a constant.
    if normalize_inside:
        example = torch.zeros(2, image_size, image_size, 3, dtype=torch.uint8, device=where)
    else:
        example = torch.zeros(2, 3, image_size, image_size, device=where)
    with torch.no_grad(), _quiet_exporter():
        embedding_dim = int(module(example).shape[1])
        program = torch.onnx.export(
            module.eval(),
            (example,),
            dynamo=True,
            verbose=False,
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            opset_version=opset,
            external_data=False,
        )
    return cast(torch.onnx.ONNXProgram, program), embedding_dim


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
    model = OnnxModel(path)
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
