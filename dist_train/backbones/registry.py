"""The networks that a recipe may name, a row each; without torch, so that recipes are read in no time."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

IRESNET = "dist_train.backbones.iresnet:IResNet"
IRESNET_SECTION = "dist_train.backbones.config:IResNetConfig"
IRESNET_WIDTHS = (64, 64, 128, 256, 512)
FIVE_HALVINGS_PX = 32
VIT_PATCH_PX = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneSpec:
    """What is known of a network before it is built.

    What the network itself knows stands on its class: see `conventions`.

    Attributes:
        network: its class as `module:name`, imported when one is built. It takes `image_size`, `arguments` and the keys
            of its `section` but `name`, all by keyword.
        arguments: what sets it apart from other networks of the class.
        section: the class, as `module:name`, of the `backbone` section of recipes that name the network; a subclass of
            `BackboneConfig` where the network has keys of its own.
        min_image_size: side of the smallest pictures in pixels.
        max_image_size: side of the largest; None for any.
        larger: the network to use for pictures larger than that.
        short_name: what people call it.
    """

    network: str
    arguments: Mapping[str, object] = field(default_factory=dict)
    section: str = "dist_train.backbones.config:BackboneConfig"
    min_image_size: int
    max_image_size: int | None = None
    larger: str | None = None
    short_name: str | None = None


def _iresnet(short_name: str, *blocks: int) -> BackboneSpec:
    """The residual network of the face field, given the blocks of its four stages."""
    return BackboneSpec(
        network=IRESNET,
        section=IRESNET_SECTION,
        arguments={"blocks": blocks, "widths": IRESNET_WIDTHS},
        min_image_size=FIVE_HALVINGS_PX,
        short_name=short_name,
    )


def _mobilefacenet(scale: int) -> BackboneSpec:
    return BackboneSpec(
        network="dist_train.backbones.mobilefacenet:MobileFaceNet",
        arguments={"scale": scale},
        min_image_size=FIVE_HALVINGS_PX,
    )


def _small(*widths: int, max_image_size: int | None = None, larger: str | None = None) -> BackboneSpec:
    """A network for CPUs: one block a stage, and a stem that halves the picture."""
    return BackboneSpec(
        network=IRESNET,
        section=IRESNET_SECTION,
        arguments={"blocks": (1, 1, 1, 1), "widths": widths, "stem_stride": 2},
        min_image_size=FIVE_HALVINGS_PX,
        max_image_size=max_image_size,
        larger=larger,
    )


def _vit(width: int, depth: int, heads: int = 8, patch_px: int = VIT_PATCH_PX, tokens: int = 28) -> BackboneSpec:
    """A vision transformer; its pictures have at most `tokens` x `tokens` patches."""
    return BackboneSpec(
        network="dist_train.backbones.vit:VisionTransformer",
        section="dist_train.backbones.config:VitConfig",
        arguments={"patch_px": patch_px, "width": width, "depth": depth, "heads": heads},
        min_image_size=4 * patch_px,
        max_image_size=tokens * patch_px,
    )


BACKBONES: dict[str, BackboneSpec] = {
    "iresnet18": _iresnet("r18", 2, 2, 2, 2),
    "iresnet34": _iresnet("r34", 3, 4, 6, 3),
    "iresnet50": _iresnet("r50", 3, 4, 14, 3),
    "iresnet100": _iresnet("r100", 3, 13, 30, 3),
    "iresnet200": _iresnet("r200", 6, 26, 60, 6),
    "mobilefacenet": _mobilefacenet(scale=1),
    "mobilefacenet_large": _mobilefacenet(scale=2),
    # Widths and depths of arcface_torch's backbones/__init__.py.
    "vit_tiny": _vit(256, 12),
    "vit_small": _vit(512, 12),
    "vit_base": _vit(512, 24),
    "vit_large": _vit(768, 24),
    "vit_nano": _vit(96, 6, heads=3, patch_px=8, tokens=8),
    "tiny": _small(16, 32, 64, 128, 256),
    "nano": _small(8, 16, 32, 64, 128, max_image_size=64, larger="tiny"),
}

TIMM = "timm/"
_TIMM_NAME = re.compile(re.escape(TIMM) + r"[A-Za-z0-9_.]{1,100}")  # no place to download from, which timm takes too


def backbone_spec(name: str) -> BackboneSpec | None:
    """The row of a network: one of `BACKBONES`, or what `timm/NAME` stands for; None for a name that is neither."""
    if _TIMM_NAME.fullmatch(name):
        return BackboneSpec(
            network="dist_train.backbones.timm:TimmNetwork",
            arguments={"model": name.removeprefix(TIMM)},
            min_image_size=FIVE_HALVINGS_PX,
        )
    return BACKBONES.get(name)


def known_spec(name: str) -> BackboneSpec:
    """The row of a network whose name a section has checked."""
    spec = backbone_spec(name)
    if spec is None:
        raise KeyError(name)
    return spec
