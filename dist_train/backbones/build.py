"""The network that a recipe names."""

import pkgutil
from typing import cast

from torch import nn

from dist_train.backbones.config import BackboneConfig
from dist_train.backbones.registry import known_spec
from dist_train.backbones.widths import narrow
from dist_train.errors import UserError


def build_backbone(config: BackboneConfig, image_size: int) -> nn.Module:
    """The network that `config` names.

    Its `forward` takes images [B, 3, image_size, image_size], float in [-1, 1], and gives raw embeddings [B, D]:
    not normalised, since some margins use their norm.

    Raises:
        UserError: pictures smaller or larger than the network takes, or channels that are not of this network.
    """
    spec = known_spec(config.name)
    if image_size < spec.min_image_size:
        raise UserError(
            f"image_size {image_size} px is too small for backbone.name={config.name}; use >= {spec.min_image_size}"
        )
    if spec.max_image_size is not None and image_size > spec.max_image_size:
        raise UserError(
            f"image_size {image_size} px is too large for backbone.name={config.name}; use <= {spec.max_image_size}"
            + (f", or {spec.larger}" if spec.larger else "")
        )
    network = pkgutil.resolve_name(spec.network)
    options = config.model_dump(exclude={"name", "channels"})
    built = cast(nn.Module, network(image_size=image_size, **options, **spec.arguments))
    if config.channels is not None:
        narrow(built, config.channels, image_size)
    return built
