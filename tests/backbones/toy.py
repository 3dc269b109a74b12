"""A network with attention, positions and keys of its own: what another backbone brings, in one file."""

import torch
from pydantic import Field
from torch import nn

from dist_train.backbones.config import BackboneConfig
from dist_train.backbones.recompute import Blocks
from dist_train.backbones.registry import BackboneSpec

WIDTH = 16


class ToyConfig(BackboneConfig):
    patch_px: int = Field(8, ge=1)
    depth: int = Field(1, ge=1)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.inputs = nn.Linear(WIDTH, 3 * WIDTH)
        self.output = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        queries, keys, values = self.inputs(self.norm(x)).chunk(3, dim=-1)  # [B, N, WIDTH] each
        return x + self.output(nn.functional.scaled_dot_product_attention(queries, keys, values))


class Toy(nn.Module):
    def __init__(self, image_size, embedding_dim, dropout, patch_px, depth, gain):
        super().__init__()
        self.gain = gain
        self.patches = nn.Conv2d(3, WIDTH, patch_px, patch_px)
        self.positions = nn.Parameter(torch.zeros(1, (image_size // patch_px) ** 2, WIDTH))
        self.blocks = Blocks(*(Attention() for _ in range(depth)))
        self.embed = nn.Sequential(nn.Dropout(dropout), nn.Linear(WIDTH, embedding_dim))

    def no_weight_decay(self):
        return {"positions", "class_token"}  # as timm's networks, which name what only a variant has

    def forward(self, images):
        assert images.is_contiguous()
        x = self.gain * self.patches(images).flatten(2).transpose(1, 2) + self.positions
        return self.embed(self.blocks(x).mean(dim=1))


ROW = BackboneSpec(
    network=f"{__name__}:Toy",
    section=f"{__name__}:ToyConfig",
    arguments={"gain": 2.0},
    min_image_size=16,
    max_image_size=64,
    short_name="t",
)
