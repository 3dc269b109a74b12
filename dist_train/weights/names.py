"""What other projects call a network's tensors: one table for each."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import cast

import torch

from dist_train.backbones import build_backbone
from dist_train.backbones.config import BackboneConfig
from dist_train.backbones.mobilefacenet import BOTTLENECKS
from dist_train.backbones.registry import BACKBONES, TIMM, known_spec
from dist_train.errors import UserError


class NameTable(ABC):
    """The names of one source."""

    @abstractmethod
    def own_names(self, backbone: BackboneConfig) -> dict[str, str]:
        """The source's name -> our name, for every tensor of a network that the source has, too.

        Raises:
            UserError: the source has no such network.
        """

    def strangers(self, backbone: BackboneConfig) -> tuple[str, ...]:
        """What names begin with that the source has for such a network and that are of no use here: a classifier."""
        return ()


class OwnNames(NameTable):
    """Our own."""

    def own_names(self, backbone: BackboneConfig) -> dict[str, str]:
        """See `NameTable`."""
        return {name: name for name in tensor_names(backbone)}


class ArcfaceNames(NameTable):
    """Those of InsightFace's recognition/arcface_torch: its iresnet and mobilefacenet."""

    def own_names(self, backbone: BackboneConfig) -> dict[str, str]:
        """See `NameTable`."""
        if backbone.name in _ARCFACE_IRESNETS:
            modules = dict(_iresnet(cast(Sequence[int], BACKBONES[backbone.name].arguments["blocks"])))
        elif backbone.name in _ARCFACE_MOBILEFACENETS:
            modules = dict(_mobilefacenet())
        else:
            known = ", ".join((*_ARCFACE_IRESNETS, *_ARCFACE_MOBILEFACENETS))
            raise UserError(f"arcface_torch has no network like backbone.name={backbone.name}; it has {known}")
        theirs = {ours: their for their, ours in modules.items()}
        splits = ((name, *name.rpartition(".")[::2]) for name in tensor_names(backbone))
        return {f"{theirs[module]}.{tensor}": name for name, module, tensor in splits}


_ARCFACE_IRESNETS = ("iresnet18", "iresnet34", "iresnet50", "iresnet100", "iresnet200")
_ARCFACE_MOBILEFACENETS = ("mobilefacenet", "mobilefacenet_large")


def _iresnet(blocks: Sequence[int]) -> Iterator[tuple[str, str]]:
    """Their module, ours."""
    yield from (("conv1", "stem.0"), ("bn1", "stem.1"), ("prelu", "stem.2"))
    place = 0
    for stage, count in enumerate(blocks, 1):
        for block in range(count):
            theirs, ours = f"layer{stage}.{block}", f"stages.{place}"
            for number, name in enumerate(("bn1", "conv1", "bn2", "prelu", "conv2", "bn3")):
                yield f"{theirs}.{name}", f"{ours}.residual.{number}"
            for number in (0, 1):
                yield f"{theirs}.downsample.{number}", f"{ours}.shortcut.{number}"
            place += 1
    yield from (("bn2", "embed.0"), ("fc", "embed.3"), ("features", "embed.4"))


def _mobilefacenet() -> Iterator[tuple[str, str]]:
    """Their module, ours. They wrap each convolution, and put the blocks that keep the size into one `layers`."""
    place = 0
    for number in (0, 1):
        yield from _conv_block(f"layers.{number}.layers", f"features.{place}", f"features.{place + 1}")
        place += 2
    layer = 2
    for _, _, repeats, stride in BOTTLENECKS:
        blocks = [f"layers.{layer}"] if stride > 1 else []
        layer += len(blocks)
        alike = repeats - len(blocks)
        blocks += [f"layers.{layer}.layers.{number}" for number in range(alike)]
        layer += bool(alike)
        for block in blocks:
            ours = f"features.{place}.residual"
            yield from _conv_block(f"{block}.layers.0.layers", f"{ours}.0", f"{ours}.1")
            yield from _conv_block(f"{block}.layers.1.layers", f"{ours}.2", f"{ours}.3")
            yield from _conv_block(f"{block}.layers.2.layers", f"{ours}.4")
            place += 1
    yield from _conv_block("conv_sep.layers", f"features.{place}", f"features.{place + 1}")
    gdc = (("layers.0.layers.0", 0), ("layers.0.layers.1", 1), ("layers.2", 4), ("layers.3", 5))
    yield from ((f"features.{theirs}", f"embed.{ours}") for theirs, ours in gdc)


def _conv_block(theirs: str, conv_bn: str, prelu: str | None = None) -> Iterator[tuple[str, str]]:
    yield from ((f"{theirs}.{number}", f"{conv_bn}.{number}") for number in (0, 1))
    if prelu is not None:
        yield f"{theirs}.2", prelu


class TimmNames(NameTable):
    """Those of timm, whose networks have no embedding: the last layer of ours has no names there."""

    def own_names(self, backbone: BackboneConfig) -> dict[str, str]:
        """See `NameTable`."""
        if not backbone.name.startswith(TIMM):
            raise UserError(f"timm has no network like backbone.name={backbone.name}; it has timm/NAME")
        body = "body."
        return {name.removeprefix(body): name for name in tensor_names(backbone) if name.startswith(body)}

    def strangers(self, backbone: BackboneConfig) -> tuple[str, ...]:
        """See `NameTable`."""
        from dist_train.backbones.timm import classifier_names

        return classifier_names(backbone.name.removeprefix(TIMM))


TABLES: dict[str, NameTable] = {
    "headcount": OwnNames(),
    "arcface_torch": ArcfaceNames(),
    "timm": TimmNames(),
}
"""By source."""


_USUAL_PX = 224


def tensor_names(backbone: BackboneConfig) -> list[str]:
    """Our names of a network's tensors, which depend neither on the size of its pictures nor on its channels."""
    smallest = known_spec(backbone.name).min_image_size
    whole = backbone.model_copy(update={"channels": None})  # those of a pruned network fit one size alone
    with torch.device("meta"):
        try:
            return list(build_backbone(whole, smallest).state_dict())
        except UserError:  # some of timm's are built for larger pictures alone
            return list(build_backbone(whole, _USUAL_PX).state_dict())
