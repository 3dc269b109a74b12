"""The momentum encoder: a slow copy of backbone and projector, which makes the keys."""

import copy
import math
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dist_train.contrast.network import QueryNetwork


class MomentumEncoder(nn.Module):
    """A moving average of a query network's backbone and projector: images [B, 3, S, S] -> keys [B, P].

    Its BatchNorm always normalises by the batch, as in MoCo, and so keeps no running statistics. What a network leaves
    out at random in training, keys are made of.

    Args:
        network: what it begins as a copy of.
    """

    def __init__(self, network: QueryNetwork) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(network.backbone)
        self.projector = copy.deepcopy(network.projector)
        self.requires_grad_(False)
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.track_running_stats = False

    def train(self, mode: bool = True) -> Self:
        """Training mode for BatchNorm alone."""
        super().train(False)
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.train(mode)
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] in [-1, 1] -> unit rows [B, P] float32."""
        projections: Tensor = self.projector(self.backbone(images))
        return nn.functional.normalize(projections.float(), dim=1)

    @torch.no_grad()
    def follow(self, network: QueryNetwork, momentum: float, proceed: Tensor | None = None) -> None:
        """Keep the share `momentum` of each weight, and take the rest from `network`.

        All is kept where `proceed`, [] bool on the device, is false.
        """
        own: list[Tensor] = list(self.parameters())
        source = [one.detach() for one in (*network.backbone.parameters(), *network.projector.parameters())]
        if proceed is None:
            torch._foreach_lerp_(own, source, 1 - momentum)
        else:
            torch._foreach_lerp_(own, source, [proceed * (1 - momentum)] * len(own))


def momentum_at(step: int, total_steps: int, first: float, final: float) -> float:
    """The momentum in step `step` of 0 .. total_steps - 1.

    From `first` to `final` by half a cosine: Grill et al., "Bootstrap Your Own Latent" (NeurIPS 2020), section 3.3,
    which MoCo v3 takes over.
    """
    return final - (final - first) * (1 + math.cos(math.pi * min(1.0, step / total_steps))) / 2
