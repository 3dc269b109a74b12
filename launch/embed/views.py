"""Views of who is looked for: the photo that each model of a gallery is given, and how it is embedded."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dist_train.embed.gallery import Gallery
from dist_train.errors import UserError
from dist_train.evaluate.calibration import Owner
from dist_train.evaluate.fusion import fused_rows
from dist_train.evaluate.models import Model
from dist_train.runtime.terminal import echo
from launch.embed.decision import said_of


class View(NamedTuple):
    """A photo for a model.

    Attributes:
        model: that embeds it.
        photo: path.
        flip: whether the mirrored picture's embedding is added, as for the gallery.
        aligned: whether the gallery's pictures are aligned faces.
    """

    model: Model
    photo: Path
    flip: bool
    aligned: bool


class FusedModels(NamedTuple):
    """The models of a fused gallery as one, whose thresholds the gallery states."""

    gallery: Gallery

    @property
    def name(self) -> str:
        """Those of all."""
        return str(self.gallery.made_by["model"]["name"])

    @property
    def told(self) -> Mapping[str, str]:
        """Nothing: what was said of each model is part of the fusion's digest."""
        return {}

    def thresholds(self) -> str:
        """The thresholds, as JSON."""
        return self.gallery.thresholds

    def owner(self) -> Owner:
        """The fusion, by its digest."""
        return Owner(self.name, str(self.gallery.made_by["model"]["sha256"]))


def views_for(gallery: Gallery, models: Sequence[Model], photos: Sequence[Path]) -> list[View]:
    """The views that a gallery takes, in the order of its models.

    Args:
        gallery: that is searched.
        models: all that it was embedded with, in any order.
        photos: one for all models, or one for each in the order of `models`.

    Raises:
        UserError: models or photos that are missing, too many, or of another gallery.
    """
    count = len(gallery.parts) or 1
    if len(models) != count:
        names = ", ".join(part.name for part in gallery.parts) or gallery.made_by["model"]["name"]
        raise UserError(
            f"gallery {gallery.directory} was embedded with {count} model{'s' if count > 1 else ''} ({names}), --model "
            f"names {len(models)}; give --model once for each"
        )
    if len(photos) not in (1, count):
        raise UserError(f"{len(photos)} photos for {count} models; give one for all, or one for each --model in order")
    given = list(zip(models, photos if len(photos) == count else [photos[0]] * count, strict=True))
    if not gallery.parts:
        check_model(gallery, gallery.made_by, models[0])
        return [View(*given[0], bool(gallery.made_by["flip"]), gallery.aligned[0])]
    views = []
    for part, aligned in zip(gallery.parts, gallery.aligned, strict=True):
        at = next((n for n, (model, _) in enumerate(given) if _is(model, part.made_by)), 0)
        model, photo = given.pop(at)
        check_model(gallery, {**part.made_by, "model": {**part.made_by["model"], "name": part.name}}, model)
        views.append(View(model, photo, part.flip, aligned))
    return views


def joined_features(gallery: Gallery, features: Sequence[Tensor]) -> Tensor:
    """The embedding [1, D] that a gallery is searched with, of those [1, D] of its views."""
    if not gallery.parts:
        return features[0]
    unit = [torch.nn.functional.normalize(each, dim=1) for each in features]
    return fused_rows(unit, [part.weight for part in gallery.parts])


def _is(model: Model, made_by: Mapping[str, Any]) -> bool:
    same = bool(model.digest() == made_by["model"]["sha256"])
    return same and dict(model.told) == made_by["model"].get("told", {})


def check_model(gallery: Gallery, made_by: Mapping[str, Any], model: Model) -> None:
    """Refuse a model whose embeddings cannot be compared with those that were `made_by` another.

    Raises:
        UserError: another model, or one of which something else was said.
    """
    if model.embedding_dim != made_by["embedding_dim"]:
        raise UserError(
            f"model {model.name} gives embeddings of {model.embedding_dim} numbers, gallery {gallery.directory} holds "
            f"{made_by['embedding_dim']}; give the model that it was embedded with: {made_by['model']['name']}"
        )
    digest = model.digest()
    if digest != made_by["model"]["sha256"] and model.compatible_with() == made_by["model"]["sha256"]:
        echo(f"model {model.name} was trained to be compatible with the gallery's, {made_by['model']['name']}")
    elif digest != made_by["model"]["sha256"]:
        raise UserError(
            f"gallery {gallery.directory} was embedded with model {made_by['model']['name']} (SHA-256 "
            f"{made_by['model']['sha256'][:12]}), --model is {model.name} ({digest[:12]}); their embeddings cannot be "
            "compared: give that model, or embed the gallery's pictures with this one"
        )
    if (told := dict(model.told)) != (then := made_by["model"].get("told", {})):
        raise UserError(
            f"gallery {gallery.directory} was embedded with {said_of(then)} of the model, the photo would be with "
            f"{said_of(told)}; their embeddings cannot be compared: say of the model what was said then"
        )
