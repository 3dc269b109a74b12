"""P-Net, R-Net and O-Net: three small networks, each more certain and more costly than the one before.

Zhang, Zhang, Li, Qiao: Joint Face Detection and Alignment using Multi-task Cascaded Convolutional Networks (IEEE Signal
Processing Letters, 2016), figure 2, with the channel counts of the authors' published models.

Inputs are RGB with pixel values mapped from 0..255 to (x - 127.5) / 128, and a fourth channel with weights of zero: a
pixel's four sums are gathered as one word of 16 bytes (`windows.py`), and to drop one would cost more than to keep it.
A regression gives the four sides of the box as offsets in units of the box's own width and height; landmarks are
positions within the box in the same units.
"""

from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

INPUT = 4  # channels of the input; weights of the last are zero
STEM = 16  # channels of P-Net's first layer: the paper's 10, padded with zeros that fill a vector register


class PNet(nn.Module):
    """The proposal network, fully convolutional: one answer per 2x2 pixels, about the 12x12 that follow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(INPUT, STEM, 3)
        self.prelu1 = nn.PReLU(STEM)
        self.conv2 = nn.Conv2d(STEM, 16, 3)
        self.prelu2 = nn.PReLU(16)
        self.conv3 = nn.Conv2d(16, 32, 3)
        self.prelu3 = nn.PReLU(32)
        self.score = nn.Linear(32, 2)
        self.box = nn.Linear(32, 4)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and features of every window.

        Args:
            pictures: [n, INPUT, H, W], H and W even, channels last in memory.

        Returns:
            Logits [n, H/2 - 5, W/2 - 5] of there being a face, and features [n, H/2 - 5, W/2 - 5, 32], which `box`
            turns into regressions where there is one.
        """
        x = _activated(self.prelu1, self.conv1(pictures), 2)
        x = self.prelu2(self.conv2(x))
        x = self.prelu3(self.conv3(x)).permute(0, 2, 3, 1)
        # The softmax over two classes needs the difference of their logits alone: one product in place of two.
        logits = x @ (self.score.weight[1] - self.score.weight[0]) + (self.score.bias[1] - self.score.bias[0])
        return logits, x


def _activated(prelu: nn.PReLU, x: Tensor, window: int) -> Tensor:
    """`prelu`, then the largest of windows of 2 or 3 pixels at every second pixel, the last one cut off at the edge."""
    if not x.requires_grad:
        return _pool2(prelu(x)) if window == 2 else _pool3(prelu(x))
    # Backward through the library's pooling takes a fraction of the time. And where no slope is negative, the largest
    # of all is the largest before, too: a quarter of the pixels goes through what costs more than the convolutions.
    if bool((prelu.weight >= 0).all()):
        return cast(Tensor, prelu(F.max_pool2d(x, window, 2, ceil_mode=True)))
    return F.max_pool2d(prelu(x), window, 2, ceil_mode=True)


def _pool2(x: Tensor) -> Tensor:
    """`max_pool2d(x, 2)` of even height and width, in half its time for channels-last pictures."""
    x = torch.maximum(x[:, :, 0::2], x[:, :, 1::2])
    return torch.maximum(x[:, :, :, 0::2], x[:, :, :, 1::2])


def _pool3(x: Tensor) -> Tensor:
    """`max_pool2d(x, 3, 2, ceil_mode=True)`, in half its time for channels-last pictures."""
    return _thrice(_thrice(x).transpose(2, 3)).transpose(2, 3)


def _thrice(x: Tensor) -> Tensor:
    """`_pool3` over the height alone; the last window of an even height has two pixels."""
    pooled = torch.maximum(x[:, :, 0 : x.shape[2] // 2 * 2 : 2], x[:, :, 1::2])
    third = x[:, :, 2::2]
    pooled[:, :, : third.shape[2]].clamp_(min=third)
    return pooled


class RNet(nn.Module):
    """The refinement network: candidates of 24x24 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(INPUT, 28, 3)
        self.prelu1 = nn.PReLU(28)
        self.conv2 = nn.Conv2d(28, 48, 3)
        self.prelu2 = nn.PReLU(48)
        self.conv3 = nn.Conv2d(48, 64, 2)
        self.prelu3 = nn.PReLU(64)
        self.dense4 = nn.Linear(64 * 3 * 3, 128)
        self.prelu4 = nn.PReLU(128)
        self.score = nn.Linear(128, 2)
        self.box = nn.Linear(128, 4)

    def forward(self, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [n, 2] of no face and face, and the box regression [n, 4], of `candidates` [n, INPUT, 24, 24]."""
        x = self.features(candidates)
        return self.score(x), self.box(x)

    def features(self, candidates: Tensor) -> Tensor:
        """What the outputs are made of, [n, 128]."""
        x = _activated(self.prelu1, self.conv1(candidates), 3)
        x = _activated(self.prelu2, self.conv2(x), 3)
        x = self.prelu3(self.conv3(x))
        features: Tensor = self.prelu4(self.dense4(x.flatten(1)))  # [n, 64, 3, 3] -> [n, 576]
        return features


class ONet(nn.Module):
    """The output network: candidates of 48x48 pixels, and where eyes, nose and corners of the mouth are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(INPUT, 32, 3)
        self.prelu1 = nn.PReLU(32)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.prelu2 = nn.PReLU(64)
        self.conv3 = nn.Conv2d(64, 64, 3)
        self.prelu3 = nn.PReLU(64)
        self.conv4 = nn.Conv2d(64, 128, 2)
        self.prelu4 = nn.PReLU(128)
        self.dense5 = nn.Linear(128 * 3 * 3, 256)
        self.prelu5 = nn.PReLU(256)
        self.score = nn.Linear(256, 2)
        self.box = nn.Linear(256, 4)
        self.landmarks = nn.Linear(256, 10)

    def forward(self, candidates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs for `candidates` [n, INPUT, 48, 48].

        Returns:
            Logits [n, 2] of no face and face, the box regression [n, 4], and landmarks [n, 5, 2] as x, y.
        """
        x = _activated(self.prelu1, self.conv1(candidates), 3)
        x = _activated(self.prelu2, self.conv2(x), 3)
        x = F.max_pool2d(self.prelu3(self.conv3(x)), 2, 2, ceil_mode=True)
        x = self.prelu4(self.conv4(x))
        x = self.prelu5(self.dense5(x.flatten(1)))  # [n, 128, 3, 3] -> [n, 1152]
        points = self.landmarks(x).view(-1, 2, 5).transpose(1, 2)  # five x, then five y -> [n, 5, 2]
        return self.score(x), self.box(x), points
