"""The `backbone` section of a configuration."""

import pkgutil
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BeforeValidator, Field, SerializeAsAny
from pydantic_core import PydanticKnownError

from dist_train.backbones.registry import BACKBONES, backbone_spec
from dist_train.section import Section


def _known(name: str) -> str:
    if backbone_spec(name) is None:
        *names, last = map(repr, BACKBONES)
        raise PydanticKnownError("literal_error", {"expected": f"{', '.join(names)} or {last}"})
    return name


_Width = Annotated[int, Field(ge=1, le=1 << 24)]
_MOST_LAYERS = 10_000


class BackboneConfig(Section):
    """Which network turns images into embeddings."""

    name: Annotated[str, AfterValidator(_known)] = Field(
        "iresnet50",
        description="the network; `tiny` is made for CPUs, `nano` and `vit_nano` for pictures of up to 64 px on CPUs; "
        "timm/NAME is the one that the library timm calls so, with a new last layer",
    )
    embedding_dim: int = Field(512, ge=2, le=8192, description="how many numbers an embedding has (D)")
    dropout: float = Field(
        0.0, ge=0.0, lt=1.0, description="probability with which dropout zeroes a value before the last layer"
    )
    channels: Annotated[dict[str, tuple[_Width, _Width]], Field(max_length=_MOST_LAYERS)] | None = Field(
        None,
        description="of a pruned network, channels that enter and leave each layer that has lost some, by the layer's "
        "name; `headcount prune` writes it",
    )


EmbeddingNorm = Literal["fixed", "bias"]


class IResNetConfig(BackboneConfig):
    """The `backbone` section of residual networks of the face field."""

    embedding_norm: EmbeddingNorm = Field(
        "fixed",
        description="the normalisation that ends the network: without parameters (fixed), or with a trained bias, as "
        "arcface_torch's networks have it",
    )


class VitConfig(BackboneConfig):
    """The `backbone` section of vision transformers."""

    drop_path: float = Field(
        0.0,
        ge=0.0,
        lt=1.0,
        description="share of samples that the last block's branches leave out in training (stochastic depth); "
        "earlier blocks leave out less, the first none",
    )
    patch_drop: float = Field(
        0.0, ge=0.0, lt=1.0, description="share of each picture's patches that the blocks do not see in training"
    )


def section_class(name: object) -> type[BackboneConfig]:
    """The class of the `backbone` section of recipes that name a network; the common one where there is none such.

    None is the network of recipes that name none.
    """
    if name is None:
        name = BackboneConfig.model_fields["name"].default
    spec = backbone_spec(name) if isinstance(name, str) else None
    return BackboneConfig if spec is None else cast(type[BackboneConfig], pkgutil.resolve_name(spec.section))


def backbone_section(values: dict[str, Any]) -> BackboneConfig:
    """The `backbone` section with these values, of the class that the network it names has.

    Raises:
        ValidationError: a key that the network does not have, or a value out of range.
    """
    return section_class(values.get("name")).model_validate(values)


def _by_name(values: object) -> object:
    return backbone_section(values) if isinstance(values, dict) else values


AnyBackboneConfig = Annotated[SerializeAsAny[BackboneConfig], BeforeValidator(_by_name)]
"""A `BackboneConfig` that keeps the keys that only the network named has."""
