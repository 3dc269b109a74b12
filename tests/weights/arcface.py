"""arcface_torch's networks as plain formulas over tensors of their names, with random weights and statistics."""

import torch
from torch.nn import functional as F  # noqa: N812 - as everybody calls it

BLOCKS = {"iresnet18": (2, 2, 2, 2), "iresnet50": (3, 4, 14, 3), "iresnet100": (3, 13, 30, 3)}
SCALES = {"mobilefacenet": 1, "mobilefacenet_large": 2}


class Formula:
    """A forward pass that makes each tensor at its first use; what it made is `state`."""

    def __init__(self, seed=0):
        self.state = {}
        self._random = torch.Generator().manual_seed(seed)

    def __call__(self, name, images, embedding_dim=512):
        """Embeddings of images [B, 3, 112, 112] in evaluation mode."""
        with torch.no_grad():
            if name in BLOCKS:
                return self._iresnet(images, BLOCKS[name], embedding_dim)
            return self._mobilefacenet(images, SCALES[name], embedding_dim)

    def _tensor(self, name, *shape, mean=0.0, std=1.0):
        if name not in self.state:
            self.state[name] = mean + std * torch.randn(shape, generator=self._random)
        return self.state[name]

    def _conv(self, x, name, channels, kernel, stride=1, padding=None, groups=1):
        fan_in = x.shape[1] // groups * kernel**2
        weight = self._tensor(f"{name}.weight", channels, x.shape[1] // groups, kernel, kernel, std=fan_in**-0.5)
        return F.conv2d(x, weight, None, stride, kernel // 2 if padding is None else padding, groups=groups)

    def _bn(self, x, name):
        mean = self._tensor(f"{name}.running_mean", x.shape[1], std=0.1)
        var = self._tensor(f"{name}.running_var", x.shape[1], std=0.1, mean=1.0)
        weight = self._tensor(f"{name}.weight", x.shape[1], std=0.1, mean=1.0)
        bias = self._tensor(f"{name}.bias", x.shape[1], std=0.1)
        self.state.setdefault(f"{name}.num_batches_tracked", torch.tensor(7))
        return F.batch_norm(x, mean, var, weight, bias, eps=1e-5)

    def _prelu(self, x, name):
        return F.prelu(x, self._tensor(f"{name}.weight", x.shape[1], std=0.1, mean=0.25))

    def _linear(self, x, name, features, bias):
        weight = self._tensor(f"{name}.weight", features, x.shape[1], std=x.shape[1] ** -0.5)
        return F.linear(x, weight, self._tensor(f"{name}.bias", features) if bias else None)

    def _iresnet(self, x, blocks, embedding_dim):
        x = self._prelu(self._bn(self._conv(x, "conv1", 64, 3), "bn1"), "prelu")
        for layer, (count, width) in enumerate(zip(blocks, (64, 128, 256, 512), strict=True), 1):
            for block in range(count):
                name, stride = f"layer{layer}.{block}", 2 if block == 0 else 1
                y = self._conv(self._bn(x, f"{name}.bn1"), f"{name}.conv1", width, 3)
                y = self._prelu(self._bn(y, f"{name}.bn2"), f"{name}.prelu")
                y = self._bn(self._conv(y, f"{name}.conv2", width, 3, stride), f"{name}.bn3")
                if stride == 2:
                    x = self._bn(self._conv(x, f"{name}.downsample.0", width, 1, 2), f"{name}.downsample.1")
                x = x + y
        x = self._linear(self._bn(x, "bn2").flatten(1), "fc", embedding_dim, bias=True)
        return self._bn(x, "features")

    def _block(self, x, name, channels, kernel, stride=1, padding=None, groups=1, linear=False):
        x = self._bn(self._conv(x, f"{name}.layers.0", channels, kernel, stride, padding, groups), f"{name}.layers.1")
        return x if linear else self._prelu(x, f"{name}.layers.2")

    def _depthwise(self, x, name, channels, groups, stride=1):
        y = self._block(x, f"{name}.layers.0", groups, 1)
        y = self._block(y, f"{name}.layers.1", groups, 3, stride, groups=groups)
        return self._block(y, f"{name}.layers.2", channels, 1, linear=True)

    def _mobilefacenet(self, x, scale, embedding_dim):
        narrow, wide = 64 * scale, 128 * scale
        x = self._block(x, "layers.0", narrow, 3, 2)
        x = self._block(x, "layers.1", narrow, 3, groups=64)
        layer = 2
        for channels, groups, alike, alike_groups in ((narrow, 128, 4, 128), (wide, 256, 6, 256), (wide, 512, 2, 256)):
            x = self._depthwise(x, f"layers.{layer}", channels, groups, stride=2)
            for number in range(alike):
                x = x + self._depthwise(x, f"layers.{layer + 1}.layers.{number}", channels, alike_groups)
            layer += 2
        x = self._block(x, "conv_sep", 512, 1)
        x = self._block(x, "features.layers.0", 512, 7, padding=0, groups=512, linear=True)
        return self._bn(self._linear(x.flatten(1), "features.layers.2", embedding_dim, bias=False), "features.layers.3")
