"""MobileFaceNet, about one million parameters, and its wider form.

Chen et al., "MobileFaceNets: Efficient CNNs for Accurate Real-Time Face Verification on Mobile Devices" (CCBR 2018),
table 1. The wider form is that of InsightFace's arcface_torch, "mbf": trunk channels are doubled, filters are not.
"""

import torch
from torch import Tensor, nn

from dist_train.backbones.recompute import Blocks

# Filters, channels, repeats, stride of the first repeat: the bottlenecks of table 1.
BOTTLENECKS = ((128, 64, 5, 2), (256, 128, 1, 2), (256, 128, 6, 1), (512, 128, 1, 2), (256, 128, 2, 1))


def conv_bn(channels_in: int, channels_out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution and batch normalisation, size kept at stride 1."""
    conv = nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out))


class Bottleneck(nn.Module):
    """Expand to `filters`, filter each channel, project linearly; added to the input where the shapes agree."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, filters: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            conv_bn(channels_in, filters, 1),
            nn.PReLU(filters),
            conv_bn(filters, filters, 3, stride, groups=filters),
            nn.PReLU(filters),
            conv_bn(filters, channels_out, 1),
        )
        self.same_shape = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels_in, S, S] -> [B, channels_out, S/stride, S/stride]."""
        change: Tensor = self.residual(x)
        return x + change if self.same_shape else change


class MobileFaceNet(nn.Module):
    """Images [B, 3, S, S] -> embeddings [B, D]; a depthwise convolution over the whole map replaces pooling.

    Args:
        image_size: side S of the pictures in pixels.
        embedding_dim: D.
        dropout: share of features dropped before the last layer.
        scale: factor of the channels between bottlenecks.
    """

    memory_format = torch.channels_last

    def __init__(self, image_size: int, embedding_dim: int, dropout: float, scale: int = 1) -> None:
        super().__init__()
        channels_in, side = 64 * scale, -(-image_size // 2)
        layers: list[nn.Module] = [
            conv_bn(3, channels_in, 3, 2),
            nn.PReLU(channels_in),
            conv_bn(channels_in, channels_in, 3, groups=64),
            nn.PReLU(channels_in),
        ]
        # Each halving of the map begins a stage; the layers before the first one are the stem.
        self._starts: list[int] = []
        for filters, trunk, repeats, first_stride in BOTTLENECKS:
            channels = trunk * scale
            for repeat in range(repeats):
                stride = first_stride if repeat == 0 else 1
                if stride > 1:
                    self._starts.append(len(layers))
                layers.append(Bottleneck(channels_in, channels, stride, filters))
                channels_in, side = channels, -(-side // stride)
        layers += [conv_bn(channels_in, 512, 1), nn.PReLU(512)]
        self.features = Blocks(*layers)
        self.embed = nn.Sequential(
            nn.Conv2d(512, 512, side, groups=512, bias=False),
            nn.BatchNorm2d(512),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(512, embedding_dim, bias=False),
            nn.BatchNorm1d(embedding_dim),
        )

    def parts(self) -> dict[str, list[str]]:
        """See `conventions`."""
        bounds = [0, *self._starts, len(self.features)]
        names = ["stem", *(f"stages.{number}" for number in range(1, len(bounds) - 1))]
        rows = {
            name: [f"features.{place}" for place in range(start, stop)]
            for name, start, stop in zip(names, bounds[:-1], bounds[1:], strict=True)
        }
        return rows | {"embed": ["embed"]}

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] in [-1, 1] -> [B, D], not normalised."""
        embeddings: Tensor = self.embed(self.features(images))
        return embeddings
