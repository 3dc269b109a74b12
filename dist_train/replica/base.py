"""The backbone replicated over ranks, with its optimizer, behind one small interface."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from dist_train.backbones import undecayed
from dist_train.config import OptimizerConfig
from dist_train.runtime.ranks import Ranks

# Tensors that each optimizer keeps for a parameter; with those of the backbone they make a checkpoint.
OPTIMIZER_STATE = {"sgd": ("momentum_buffer",), "adamw": ("exp_avg", "exp_avg_sq")}


class Replica(ABC):
    """A backbone copied to every rank, and its optimizer.

    The head stands outside: it takes the embeddings as a leaf and gives their gradient back, which `backward` sends
    through the network. So the same head serves every way of replicating a backbone, and state dicts have one form
    for all of them: a run may go on with another one.
    """

    partitioned = False
    """Whether a rank has parts of the weights only, so that it cannot use the backbone alone."""

    def __init__(self, backbone: nn.Module, ranks: Ranks) -> None:
        self.backbone = backbone
        self.ranks = ranks

    @abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S] -> embeddings [B, D], in the dtype that `compute_dtype` gives."""

    @abstractmethod
    def embed_alone(self, images: Tensor) -> Tensor:
        """As `embed`, but gradients from it are not exchanged between ranks."""

    @abstractmethod
    def accumulate(self, last: bool) -> AbstractContextManager[object]:
        """Around a micro-batch: gradients are exchanged only in the `last` one of a step."""

    @abstractmethod
    def backward(self, embeddings: Tensor, gradient: Tensor) -> None:
        """Add to the parameters' gradients.

        Args:
            embeddings: what `embed` gave, [B, D].
            gradient: of the mean loss over the *global* batch with respect to them, [B, D].
        """

    @abstractmethod
    def step(self, lr: float) -> Tensor:
        """Update the weights and forget the gradients; the L2 norm of the gradient before clipping, [].

        Raises:
            NonFiniteError: the gradient is not finite; the weights are as before, on all ranks.
        """

    @abstractmethod
    def discard(self) -> None:
        """Forget the gradients."""

    @abstractmethod
    def backbone_state(self) -> dict[str, Tensor]:
        """The backbone's whole state dict, equal on every rank after `average_buffers`; a collective."""

    @abstractmethod
    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        """By parameter name, the optimizer's whole tensors, equal on every rank; zeros at first. A collective."""

    @abstractmethod
    def load_backbone(self, state: dict[str, Tensor]) -> None:
        """Take over what `backbone_state` gave, on whatever number of ranks. A collective."""

    @abstractmethod
    def load_optimizer(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Take over what `optimizer_state` gave, on whatever number of ranks. A collective."""

    def average_buffers(self) -> None:
        """Make BatchNorm's running statistics the mean over ranks; a collective.

        Between two calls they are each rank's own, which spares an exchange in every forward pass.
        """
        if self.ranks.group is None:
            return
        for buffer in self.backbone.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer, group=self.ranks.group)
                buffer /= self.ranks.world_size


def kept_state(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """The tensors that an optimizer keeps for a parameter; zeros where it has not made a step yet."""
    adam = isinstance(optimizer, torch.optim.AdamW)
    kept: dict[str, Tensor] = optimizer.state[parameter]
    for key in OPTIMIZER_STATE["adamw" if adam else "sgd"]:
        if kept.get(key) is None:
            kept[key] = torch.zeros_like(parameter)
    if adam:
        kept.setdefault("step", torch.zeros(()))
    return kept


def build_backbone_optimizer(config: OptimizerConfig, backbone: nn.Module) -> Optimizer:
    """The backbone's optimizer.

    Norms and biases, which have one dimension, are a group of their own, without decay if so configured. Parameters
    that the network never wants decayed (`undecayed`) are a third one, where there are any.
    """
    never = undecayed(backbone)
    groups: dict[str, list[nn.Parameter]] = {"weights": [], "vectors": [], "never": []}
    for name, parameter in backbone.named_parameters():
        kind = "never" if name in never else "weights" if parameter.ndim > 1 else "vectors"
        groups[kind].append(parameter)
    settings = [
        {"params": groups["weights"], "weight_decay": config.weight_decay},
        {"params": groups["vectors"], "weight_decay": config.weight_decay if config.decay_norms else 0.0},
    ]
    if never:
        settings.append({"params": groups["never"], "weight_decay": 0.0})
    if config.name == "adamw":
        return AdamW(settings, lr=config.lr)
    return SGD(settings, lr=config.lr, momentum=config.momentum)


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of the backbone's arithmetic that a recipe's `train.precision` means on `device`."""
    if precision == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    dtype: torch.dtype = getattr(torch, precision)
    return dtype
