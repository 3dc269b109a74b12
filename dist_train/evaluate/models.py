"""Opening what can be evaluated: a run directory, one of its checkpoints, an exported file, or an ONNX file."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from dist_train.backbones.config import BackboneConfig
from dist_train.checkpoint.compatibility import COMPATIBLE_KEY, compatible_with
from dist_train.checkpoint.load import found_checkpoint, load_backbone
from dist_train.checkpoint.store import read_progress
from dist_train.data.aligner import ALIGNER_KEY, Aligner
from dist_train.errors import UserError
from dist_train.evaluate.batches import EmbedFn
from dist_train.evaluate.calibration import THRESHOLDS_KEY, WEIGHTS_KEY, Owner
from dist_train.export.convention import Convention, Stated
from dist_train.runtime.digest import sha256_of
from dist_train.weights.digest import digest_weights

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """A model ready to embed pictures.

    Attributes:
        name: for tables.
        embed: images [B, 3, S, S] in [-1, 1] -> embeddings [B, D].
        image_size: S, in pixels.
        embedding_dim: D.
        digest: computes the hexadecimal SHA-256 of the model: of its weights, or of an ONNX file.
        foreign: an ONNX file that does not state what it takes; the user may.
        told: what the user stated that makes its embeddings others than the file's alone.
        misfit: the option that contradicts what the model states itself; empty if none does.
        compatible_with: reads the SHA-256 of the older model that this one was trained to be compatible with; empty for
            none.
        network: the network that computes, in evaluation mode; None for an ONNX file.
        exported_from: reads the SHA-256 of the weights that an ONNX file of ours was made of; empty where unknown.
        thresholds: reads the thresholds that an exported file states, see `dist_train.evaluate.calibration`; empty for
            none.
        aligner: reads what placed the faces of the pictures that it was trained on; None where that is unknown.
    """

    name: str
    embed: EmbedFn
    image_size: int
    embedding_dim: int
    digest: Callable[[], str]
    foreign: bool = False
    told: Mapping[str, str] = field(default_factory=dict)
    misfit: str = ""
    compatible_with: Callable[[], str] = str
    network: nn.Module | None = None
    exported_from: Callable[[], str] = str
    thresholds: Callable[[], str] = str
    aligner: Callable[[], Aligner | None] = lambda: None

    def owner(self) -> Owner:
        """The model as thresholds know it."""
        return Owner(self.name, self.digest(), self.exported_from(), exported=self.network is None)


def load_model(path: Path, device: torch.device, stated: Stated | None = None) -> Model:
    """Open one model, as `load_models` opens several."""
    return load_models([path], device, stated)[0]


def load_models(paths: Sequence[Path], device: torch.device, stated: Stated | None = None) -> list[Model]:
    """Open models.

    Args:
        paths: run directories, checkpoints in them, `.onnx` files, or exported `.safetensors` files.
        device: where a checkpoint's network computes; onnxruntime chooses for itself.
        stated: what the user says of ONNX files that do not say what they take. The others know it themselves.

    Raises:
        UserError: nothing there, not a model, or none that needs what is stated and one that contradicts it.
        WorkError: a damaged checkpoint.
    """
    models = [_open(path, device, stated or Stated()) for path in paths]
    for path, model in zip(paths, models, strict=True):
        if model.misfit and not any(each.foreign for each in models):
            raise UserError(
                f"model {path}: states itself what it takes, and {model.misfit} says otherwise; leave that out, it is "
                "for ONNX files that do not say it"
            )
    return models


def _open(path: Path, device: torch.device, stated: Stated) -> Model:
    if path.suffix == ".onnx":
        from dist_train.export.runtime import OnnxModel

        model = OnnxModel(path, stated=stated)
        convention = model.convention
        if model.foreign:
            logger.info(
                "model %s does not say what it takes; it is given %s%s",
                path,
                convention,
                "" if stated else "; --input-range, --input-mean, --input-std and --input-color say otherwise",
            )
        return Model(
            path.stem,
            model,
            convention.image_size,
            convention.embedding_dim,
            partial(sha256_of, path),
            model.foreign,
            model.told,
            "" if model.foreign else convention.contradicts(stated, model.output),
            partial(_stated, model.metadata, model.foreign, COMPATIBLE_KEY),
            exported_from=partial(_stated, model.metadata, model.foreign, WEIGHTS_KEY),
            thresholds=partial(_stated, model.metadata, model.foreign, THRESHOLDS_KEY),
            aligner=lambda: Aligner.of_text(_stated(model.metadata, model.foreign, ALIGNER_KEY)),
        )
    backbone, section, image_size = _load(path)
    backbone.to(device)

    def embed(images: Tensor) -> Tensor:
        result: Tensor = backbone(images.to(device))
        return result

    digest = partial(digest_weights, backbone)
    convention = Convention.of_ours(image_size, section.embedding_dim)
    return Model(
        path.resolve().name if path.is_dir() else path.stem,
        embed,
        convention.image_size,
        convention.embedding_dim,
        digest,
        misfit=convention.contradicts(stated, None),
        compatible_with=partial(_compatible_with, path),
        network=backbone,
        thresholds=partial(_about, path, THRESHOLDS_KEY),
        aligner=partial(_aligner, path),
    )


def _load(path: Path) -> tuple[nn.Module, BackboneConfig, int]:
    """A network of ours, its section of a recipe, and the side of its pictures in pixels."""
    if path.suffix == ".safetensors":
        from dist_train.weights.load import load_network

        return load_network(path)
    if not path.is_dir():
        raise UserError(
            f"model {path}: expected a run directory, a checkpoint directory, an .onnx file, or a .safetensors file by "
            "`headcount checkpoint export`"
        )
    backbone, config, progress = load_backbone(path)
    return backbone, config.backbone, progress.image_size


def _compatible_with(path: Path) -> str:
    """Which older model one of ours says that it is compatible with."""
    return _about(path, COMPATIBLE_KEY) if path.suffix == ".safetensors" else compatible_with(found_checkpoint(path))


def _aligner(path: Path) -> Aligner | None:
    """What placed the faces that a network of ours was trained on."""
    if path.suffix == ".safetensors":
        return Aligner.of_text(_about(path, ALIGNER_KEY))
    return read_progress(found_checkpoint(path)).aligner


def _about(path: Path, key: str) -> str:
    """What a file of weights says of itself; empty of a checkpoint."""
    if path.suffix != ".safetensors":
        return ""
    from dist_train.weights.files import read_weights

    return read_weights(path).about.get(key, "")


def _stated(metadata: Mapping[str, str], foreign: bool, key: str) -> str:
    """What an ONNX file of ours says of itself; empty of a file of others."""
    return "" if foreign else metadata.get(key, "")
