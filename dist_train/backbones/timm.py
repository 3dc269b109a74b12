"""Networks of the library timm (PyTorch Image Models), with an embedding for their classifier."""

import difflib
from typing import Any, cast

from torch import Tensor, nn

from dist_train.errors import UserError
from dist_train.runtime import extras
from dist_train.runtime.text import first_line


class TimmNetwork(nn.Module):
    """Images [B, 3, S, S] -> embeddings [B, D]: a body of timm up to its pooled features, then a layer of our own.

    Args:
        model: what timm calls the body, such as `vit_small_patch16_224`; its weights are random.
        image_size: side S of the pictures in pixels.
        embedding_dim: D.
        dropout: share of features dropped before the last layer.

    Raises:
        UserError: timm is not installed, has no such network, or cannot build it for pictures of that size.
    """

    def __init__(self, model: str, image_size: int, embedding_dim: int, dropout: float) -> None:
        super().__init__()
        self.body = _body(model, image_size)
        features = getattr(self.body, "head_hidden_size", None) or self.body.num_features
        self.embed = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(cast(int, features), embedding_dim),
            nn.BatchNorm1d(embedding_dim, affine=False),  # as in `IResNet`
        )

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] in [-1, 1] -> [B, D], not normalised."""
        embeddings: Tensor = self.embed(self.body(images))
        return embeddings

    def parts(self) -> dict[str, list[str]]:
        """See `conventions`: timm's own groups for rates by layer, such as the blocks of a transformer."""
        from timm.models import group_parameters

        groups = group_parameters(self.body, cast(Any, self.body).group_matcher(coarse=False), reverse=True)
        places: dict[int, list[str]] = {group: [] for group in sorted(set(groups.values()))}
        for name, group in groups.items():
            owner = name.rpartition(".")[0]
            # A layer stands for its parameters, so that its statistics belong to the part as well.
            leaf = owner and not any(self.body.get_submodule(owner).children())
            place = f"body.{owner if leaf else name}"
            if place not in places[group]:
                places[group].append(place)
        named = ["stem", *(f"stages.{number}" for number in range(1, len(places)))]
        return dict(zip(named, places.values(), strict=True)) | {"embed": ["embed"]}


def classifier_names(model: str) -> tuple[str, ...]:
    """Names of a network's classifying layers in timm's state dicts."""
    import timm

    stated = timm.get_pretrained_cfg(model) if timm.is_model(model) else None
    names = None if stated is None else stated.classifier
    return (names,) if isinstance(names, str) else tuple(names or ())


def _body(model: str, image_size: int) -> nn.Module:
    extras.require("timm", f"backbone.name=timm/{model}")
    import timm

    if not timm.is_model(model):
        near = difflib.get_close_matches(model, timm.list_models(), n=3)
        hint = f"; did you mean {' or '.join(f'timm/{name}' for name in near)}?" if near else ""
        raise UserError(f"backbone.name=timm/{model}: timm {timm.__version__} has no such network{hint}")
    options: dict[str, Any] = {"pretrained": False, "num_classes": 0}
    try:
        try:  # networks with positions are built for a size, others take any and no such argument
            return timm.create_model(model, img_size=image_size, **options)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            return timm.create_model(model, **options)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise UserError(
            f"backbone.name=timm/{model}: timm cannot build it for pictures of {image_size} px: {first_line(error)}"
        ) from error
