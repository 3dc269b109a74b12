"""Opening what can be evaluated: a run directory, one of its checkpoints, or an ONNX file."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from dist_train.data.foreign import sha256_of
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
        digest: computes the hexadecimal SHA-256 of the model: of its weights, or of an ONNX file.
    """

    name: str
    embed: EmbedFn
    image_size: int
    embedding_dim: int
    digest: Callable[[], str]


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
        convention = model.convention
        return Model(path.stem, model, convention.image_size, convention.embedding_dim, partial(sha256_of, path))
    if not path.is_dir():
        raise UserError(f"model {path}: expected a run directory, a checkpoint directory or an .onnx file")
    from dist_train.checkpoint import load_backbone

    backbone, config, progress = load_backbone(path)
    backbone.to(device)

    def embed(images: Tensor) -> Tensor:
        result: Tensor = backbone(images.to(device))
        return result

    digest = partial(_digest_weights, backbone)
    return Model(path.resolve().name, embed, progress.image_size, config.backbone.embedding_dim, digest)


def _digest_weights(backbone: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(backbone.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
