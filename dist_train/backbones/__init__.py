"""Networks from images to embeddings. Their configuration is there without torch, which takes seconds to import."""

import pkgutil
from typing import TYPE_CHECKING, Any

from dist_train.backbones.config import BackboneConfig

if TYPE_CHECKING:
    from dist_train.backbones.build import build_backbone
    from dist_train.backbones.conventions import draw, memory_format, undecayed
    from dist_train.backbones.recompute import recompute_activations

__all__ = ["BackboneConfig", "build_backbone", "draw", "memory_format", "recompute_activations", "undecayed"]

_MODULES = {
    "build_backbone": "build",
    "draw": "conventions",
    "memory_format": "conventions",
    "recompute_activations": "recompute",
    "undecayed": "conventions",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any of its names
    if module := _MODULES.get(name):
        return pkgutil.resolve_name(f"{__name__}.{module}:{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
