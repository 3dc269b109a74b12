"""A network of the cascade as it is trained: pictures in, one row of answers for each."""

import math

import torch
from torch import Tensor, nn

from data_prep.mtcnn.networks import INPUT, ONet, PNet, RNet

ANSWERS = 15
"""Numbers of a row of answers: the logit of there being a face, four offsets of the box, five points as x, y."""

SIDES = {"pnet": 12, "rnet": 24, "onet": 48}
"""Side of each network's input in pixels."""

_KINDS: dict[str, type[PNet] | type[RNet] | type[ONet]] = {"pnet": PNet, "rnet": RNet, "onet": ONet}
_SCALE = 127.5 / 128  # from the training set's (x - 127.5) / 127.5 to the networks' (x - 127.5) / 128


class Trainee(nn.Module):
    """One of the three networks, and what it needs only while it is trained.

    P-Net and R-Net find no points later; as in the paper they learn them all the same, by a layer of their own that is
    left behind, since what tells where the eyes are tells faces too.

    Args:
        name: `pnet`, `rnet` or `onet`.

    Attributes:
        network: what is kept.
        points: the layer that is left behind; of no use in O-Net, which has its own.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.network = _KINDS[name]()
        own = isinstance(self.network, ONet)
        self.points = nn.Identity() if own else nn.Linear(self.network.box.in_features, 10)
        _draw_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        """Answers [B, ANSWERS] for `images` [B, 3, S, S] in -1 .. 1, red first."""
        pictures = images.new_zeros(len(images), INPUT, *images.shape[2:])
        pictures = pictures.to(memory_format=torch.channels_last)
        torch.mul(images, _SCALE, out=pictures[:, :3])
        score, box, points = self._outputs(pictures)
        return torch.cat([score, box, points], 1)

    def _outputs(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if isinstance(self.network, ONet):
            logits, box, found = self.network(pictures)
            return _difference(logits), box, found.flatten(1)
        if isinstance(self.network, PNet):
            logits, features = self.network(pictures)  # [B, 1, 1], [B, 1, 1, 32]
            features = features[:, 0, 0]
            return logits[:, 0], self.network.box(features), self.points(features)
        features = self.network.features(pictures)
        return _difference(self.network.score(features)), self.network.box(features), self.points(features)


def _difference(logits: Tensor) -> Tensor:
    """The logit [B, 1] of there being a face, of two classes' logits [B, 2]."""
    return logits[:, 1:] - logits[:, :1]


@torch.no_grad()
def _draw_weights(trainee: Trainee) -> None:
    """Draw all weights anew (He et al. 2015, with the slope of a new PReLU), and zeros for the input that is none."""
    slope = 0.25
    for name, module in trainee.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            last = name.rpartition(".")[2] in ("score", "box", "points", "landmarks")
            gain = 1.0 if last else math.sqrt(2 / (1 + slope**2))
            fan_in = module.weight[0].numel()
            module.weight.normal_(0, (0.1 if last else gain) / math.sqrt(fan_in))
            if module.bias is not None:
                module.bias.zero_()
    trainee.network.conv1.weight[:, 3:] = 0
