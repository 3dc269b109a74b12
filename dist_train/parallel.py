"""The backbone replicated over ranks, with its optimizer, behind one small interface."""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, AdamW, Optimizer

from dist_train.config import OptimizerConfig
from dist_train.ranks import Ranks

# Tensors that each optimizer keeps for a parameter; with those of the backbone they make a checkpoint.
OPTIMIZER_STATE = {"sgd": ("momentum_buffer",), "adamw": ("exp_avg", "exp_avg_sq", "step")}


class Replica:
    """A backbone copied to every rank by DistributedDataParallel, and its optimizer; alone, the plain module.

    The head stands outside: it takes the embeddings as a leaf and gives their gradient back, which `backward` sends
    through the network. So the same head serves every way of replicating a backbone.

    Args:
        backbone: on this rank's device, with equal weights on every rank.
        config: the `optimizer` section.
        ranks: this process among the job's.
    """

    def __init__(self, backbone: nn.Module, config: OptimizerConfig, ranks: Ranks) -> None:
        self.backbone = backbone
        self._config, self._ranks = config, ranks
        self._optimizer = build_optimizer(config, backbone)
        self._forward: nn.Module = backbone
        if ranks.group is not None:
            # BatchNorm's running statistics stay each rank's own and are averaged when somebody reads them
            # (`average_buffers`), which spares a broadcast in every forward pass.
            ids = [ranks.device.index] if ranks.device.type == "cuda" else None
            self._forward = DistributedDataParallel(
                backbone,
                device_ids=ids,
                process_group=ranks.group,
                forward_sync_buffers=False,
                gradient_as_bucket_view=True,
            )

    def embed(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S] -> embeddings [B, D]."""
        embeddings: Tensor = self._forward(images)
        return embeddings

    def accumulate(self, last: bool) -> AbstractContextManager[object]:
        """Around a micro-batch: gradients are exchanged only in the `last` one of a step."""
        if last or not isinstance(self._forward, DistributedDataParallel):
            return nullcontext()
        return self._forward.no_sync()

    def backward(self, embeddings: Tensor, gradient: Tensor) -> None:
        """Add to the parameters' gradients.

        Args:
            embeddings: what `embed` gave, [B, D].
            gradient: of the mean loss over the *global* batch with respect to them, [B, D].
        """
        # DDP divides the sum over ranks by their number, which this takes back.
        embeddings.backward(gradient.to(embeddings.dtype) * self._ranks.world_size)

    def step(self, lr: float) -> Tensor:
        """Update the weights and forget the gradients; the L2 norm of the gradient before clipping, []."""
        limit = float("inf") if self._config.clip_norm is None else self._config.clip_norm
        norm = nn.utils.clip_grad_norm_(self.backbone.parameters(), limit)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return norm

    def average_buffers(self) -> None:
        """Make running statistics the mean over ranks; a collective."""
        if self._ranks.group is None:
            return
        for buffer in self.backbone.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer, group=self._ranks.group)
                buffer /= self._ranks.world_size

    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        """By parameter name, the optimizer's tensors; zeros before the first step. Equal on every rank."""
        state: dict[str, dict[str, Tensor]] = {}
        for name, parameter in self.backbone.named_parameters():
            kept = self._optimizer.state[parameter]
            for key in OPTIMIZER_STATE[self._config.name]:
                if kept.get(key) is None:
                    kept[key] = torch.zeros(()) if key == "step" else torch.zeros_like(parameter)
            state[name] = {key: kept[key] for key in OPTIMIZER_STATE[self._config.name]}
        return state

    def load_optimizer_state(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Take over what `optimizer_state` gave, on whatever number of ranks."""
        for name, tensors in self.optimizer_state().items():
            for key, tensor in tensors.items():
                tensor.copy_(state[name][key])


def build_optimizer(config: OptimizerConfig, backbone: nn.Module) -> Optimizer:
    """The backbone's optimizer; norms and biases in a group of their own, without decay if so configured."""
    weights = [p for p in backbone.parameters() if p.ndim > 1]
    vectors = [p for p in backbone.parameters() if p.ndim <= 1]
    groups = [
        {"params": weights, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": config.weight_decay if config.decay_norms else 0.0},
    ]
    if config.name == "adamw":
        return AdamW(groups, lr=config.lr)
    return SGD(groups, lr=config.lr, momentum=config.momentum)
