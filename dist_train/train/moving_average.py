"""A moving average of the backbone's weights, which is then what is evaluated."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class MovingAverage(AveragedModel):
    """Weights w averaged over steps: a <- decay · a + (1 - decay) · w, from the first step's on.

    Args:
        backbone: whose copy this is.
        decay: of the average, in a step.
    """

    def __init__(self, backbone: nn.Module, decay: float) -> None:
        super().__init__(backbone, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self._decay = decay
        # Where the weights are: whether a step was the first one is then known without the host.
        self.n_averaged = self.n_averaged.to(next(backbone.parameters()).device)

    @torch.no_grad()
    def follow(self, backbone: nn.Module, proceed: Tensor | None) -> None:
        """Take a step's weights into the average, and the statistics as they are.

        Args:
            backbone: the network, whose statistics a refused step has left as they were.
            proceed: [] bool on the device, false where the step is refused; None: it is not.
        """
        if proceed is None:
            self.update_parameters(backbone)
            return
        share = torch.where(self.n_averaged == 0, 1.0, 1.0 - self._decay) * proceed
        averages: list[Tensor] = list(self.module.parameters())
        weights: list[Tensor] = list(backbone.parameters())
        torch._foreach_lerp_(averages, weights, [share] * len(averages))
        torch._foreach_copy_(list(self.module.buffers()), list(backbone.buffers()))
        self.n_averaged += proceed
