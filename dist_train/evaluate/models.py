"""Opening what can be evaluated: a run directory, one of its checkpoints, or an ONNX file."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dist_train.errors import UserError
from dist_train.evaluate.embed import EmbedFn


@dataclass(frozen=True)
class Model:
    """A model ready to embed pictures.

    Attributes:
        name: for tables.
        embed: images [B, 3, S, S] in [-1, 1] -> embeddings [B, D].
        image_size: S, in pixels.
        embedding_dim: D.
    """

    name: str
    embed: EmbedFn
    image_size: int
    embedding_dim: int


def load_model(path: Path, device: torch.device) -> Model:
    """Open a model.

    Args:
        path: a run directory, a checkpoint in it, or an `.onnx` file.
        device: where a checkpoint's network computes; onnxruntime chooses for itself.

    Raises:
        UserError: nothing there, or not a model.
        WorkError: a damaged checkpoint.
    """
    if path.suffix == ".onnx":
        from dist_train.export.runtime import OnnxModel

        model = OnnxModel(path)
        return Model(path.stem, model, model.convention.image_size, model.convention.embedding_dim)
    if not path.is_dir():
        raise UserError(f"model {path}: expected a run directory, a checkpoint directory or an .onnx file")
    from dist_train.checkpoint import load_backbone

    backbone, config, progress = load_backbone(path)
    backbone.to(device)

    def embed(images: Tensor) -> Tensor:
        result: Tensor = backbone(images.to(device))
        return result

    return Model(path.resolve().name, embed, progress.image_size, config.backbone.embedding_dim)
