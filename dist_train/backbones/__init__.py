"""Networks from images to embeddings."""

from torch import nn

from dist_train.backbones.config import BackboneConfig
from dist_train.backbones.iresnet import IResNet
from dist_train.backbones.mobilefacenet import MobileFaceNet
from dist_train.backbones.recompute import recompute_activations
from dist_train.errors import UserError

__all__ = ["BackboneConfig", "build_backbone", "recompute_activations"]

# Blocks of the four stages, and channels of the stem and the four stages.
IRESNET_WIDTHS = (64, 64, 128, 256, 512)
IRESNET_BLOCKS = {
    "iresnet18": (2, 2, 2, 2),
    "iresnet34": (3, 4, 6, 3),
    "iresnet50": (3, 4, 14, 3),
    "iresnet100": (3, 13, 30, 3),
    "iresnet200": (6, 26, 60, 6),
}
TINY_WIDTHS = {"tiny": (16, 32, 64, 128, 256), "nano": (8, 16, 32, 64, 128)}
TINY_BLOCKS = (1, 1, 1, 1)
MIN_IMAGE_SIZE = 32
# Of `nano`: in torch 2.14 the backward of its convolutions of 8 channels crashes on CPUs at 112 px.
NANO_IMAGE_SIZE = 64


def build_backbone(config: BackboneConfig, image_size: int) -> nn.Module:
    """The network that `config` names.

    Its `forward` takes images [B, 3, image_size, image_size], float in [-1, 1], and gives raw embeddings [B, D]:
    not normalised, since some margins use their norm.

    Raises:
        UserError: pictures too small for five halvings, or too large for `nano`.
    """
    if image_size < MIN_IMAGE_SIZE:
        raise UserError(
            f"image_size {image_size} px is too small for backbone.name={config.name}; use >= {MIN_IMAGE_SIZE}"
        )
    if config.name == "nano" and image_size > NANO_IMAGE_SIZE:
        raise UserError(
            f"image_size {image_size} px is too large for backbone.name=nano; use <= {NANO_IMAGE_SIZE}, or tiny"
        )
    if config.name == "mobilefacenet":
        return MobileFaceNet(image_size, config.embedding_dim, config.dropout)
    if widths := TINY_WIDTHS.get(config.name):
        return IResNet(TINY_BLOCKS, widths, image_size, config.embedding_dim, config.dropout, stem_stride=2)
    return IResNet(IRESNET_BLOCKS[config.name], IRESNET_WIDTHS, image_size, config.embedding_dim, config.dropout)
