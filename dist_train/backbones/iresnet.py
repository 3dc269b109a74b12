"""The residual network of the face field.

Deng et al., ArcFace (CVPR 2019), section 3.2: ResNet (He et al., CVPR 2016) with a 3×3 stem of stride 1, blocks of
the form BN-Conv-BN-PReLU-Conv-BN, and BN-Dropout-FC-BN at the end, which makes the embedding.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from dist_train.backbones.config import EmbeddingNorm
from dist_train.backbones.recompute import Blocks

_WIDE = 16  # channels


def conv3x3(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    """A 3×3 convolution that keeps the size, or halves it (rounding up) at stride 2."""
    return nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)


class Shortcut(nn.Conv2d):
    """A 1×1 convolution with a stride.

    The backward pass of a narrow one, 12 channels or fewer that lie last, writes beyond its memory on CPUs (oneDNN of
    torch 2.14, seen by glibc's malloc check). It is given what the stride leaves, which is the same sum.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__(channels_in, channels_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels_in, S, S] -> [B, channels_out, S/stride, S/stride]."""
        if x.device.type == "cpu" and x.requires_grad and self.in_channels < _WIDE:
            rows, columns = self.stride
            return nn.functional.conv2d(x[:, :, ::rows, ::columns], self.weight)
        return super().forward(x)


class Block(nn.Module):
    """BN-Conv-BN-PReLU-Conv-BN beside a shortcut; the stride sits in the second convolution."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.BatchNorm2d(channels_in),
            conv3x3(channels_in, channels_out),
            nn.BatchNorm2d(channels_out),
            nn.PReLU(channels_out),
            conv3x3(channels_out, channels_out, stride),
            nn.BatchNorm2d(channels_out),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(Shortcut(channels_in, channels_out, stride), nn.BatchNorm2d(channels_out))

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels_in, S, S] -> [B, channels_out, S/stride, S/stride]."""
        changed: Tensor = self.residual(x) + self.shortcut(x)
        return changed


class BiasNorm(nn.BatchNorm1d):
    """BatchNorm with a trained bias whose scale stays what it is: 1, or what a network to start from had.

    The scale is a buffer rather than a frozen parameter, so that no optimizer, weight decay or ZeRO partition knows it,
    and state dicts hold it all the same under its usual name.

    Args:
        features: of the inputs [B, features].
    """

    def __init__(self, features: int) -> None:
        super().__init__(features)
        scale = self.weight.detach()
        del self.weight
        self.register_buffer("weight", scale)


class IResNet(nn.Module):
    """Images [B, 3, S, S] -> embeddings [B, D].

    Args:
        blocks: residual blocks in each of the four stages; each stage halves the picture.
        widths: channels of the stem and of the four stages.
        image_size: side S of the pictures in pixels.
        embedding_dim: D.
        dropout: share of features dropped before the last layer.
        stem_stride: 2 quarters the cost of the whole network, for CPUs.
        embedding_norm: of the embedding's BatchNorm, `fixed`: no parameters, or `bias`: a trained bias.
    """

    memory_format = torch.channels_last

    def __init__(
        self,
        blocks: Sequence[int],
        widths: Sequence[int],
        image_size: int,
        embedding_dim: int,
        dropout: float,
        stem_stride: int = 1,
        embedding_norm: EmbeddingNorm = "fixed",
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv3x3(3, widths[0], stem_stride), nn.BatchNorm2d(widths[0]), nn.PReLU(widths[0]))
        stages = []
        for count, channels_in, channels_out in zip(blocks, widths[:-1], widths[1:], strict=True):
            stages.append(Block(channels_in, channels_out, stride=2))
            stages.extend(Block(channels_out, channels_out, stride=1) for _ in range(count - 1))
        self.stages = Blocks(*stages)
        self._blocks = tuple(blocks)
        side = image_size
        for stride in (stem_stride, 2, 2, 2, 2):
            side = -(-side // stride)
        self.embed = nn.Sequential(
            nn.BatchNorm2d(widths[-1]),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(widths[-1] * side * side, embedding_dim),
            # The scale of an embedding is the head's business: a learned one would let the network buy a lower loss
            # by growing norms.
            BiasNorm(embedding_dim) if embedding_norm == "bias" else nn.BatchNorm1d(embedding_dim, affine=False),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.1)

    def parts(self) -> dict[str, list[str]]:
        """See `conventions`; the stages' blocks stand in one row."""
        ends = list(accumulate(self._blocks))
        stages = {
            f"stages.{number}": [f"stages.{place}" for place in range(end - count, end)]
            for number, (count, end) in enumerate(zip(self._blocks, ends, strict=True), 1)
        }
        return {"stem": ["stem"]} | stages | {"embed": ["embed"]}

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] in [-1, 1] -> [B, D], not normalised."""
        embeddings: Tensor = self.embed(self.stages(self.stem(images)))
        return embeddings
