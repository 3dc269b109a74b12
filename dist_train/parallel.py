"""The backbone replicated over ranks, with its optimizer, behind one small interface."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, AdamW, Optimizer

from dist_train.config import OptimizerConfig, RunConfig
from dist_train.errors import NonFiniteError
from dist_train.ranks import Ranks

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
        """Images [B, 3, S, S] -> embeddings [B, D], in the precision configured."""

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
    def load_state(self, backbone: dict[str, Tensor], optimizer: dict[str, dict[str, Tensor]]) -> None:
        """Take over what `backbone_state` and `optimizer_state` gave, on whatever number of ranks. A collective."""

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


class DdpReplica(Replica):
    """By DistributedDataParallel; alone, the plain module.

    Args:
        config: the whole configuration.
        backbone: on this rank's device, with equal weights on every rank.
        ranks: this process among the job's.
    """

    def __init__(self, config: RunConfig, backbone: nn.Module, ranks: Ranks) -> None:
        super().__init__(backbone, ranks)
        self._config = config.optimizer
        self._precision = precision(config.train.precision, ranks.device)
        self._optimizer = build_optimizer(config.optimizer, backbone)
        # Embeddings' gradients are scaled rather than the loss, so that the head stays in plain float32.
        self._scaler = torch.amp.GradScaler(ranks.device.type, enabled=self._precision == torch.float16)
        self._forward: nn.Module = backbone
        if config.train.compile:
            backbone.compile()
        if ranks.group is not None:
            ids = [ranks.device.index] if ranks.device.type == "cuda" else None
            self._forward = DistributedDataParallel(
                backbone,
                device_ids=ids,
                process_group=ranks.group,
                forward_sync_buffers=False,
                gradient_as_bucket_view=True,
            )

    def embed(self, images: Tensor) -> Tensor:
        """See `Replica.embed`."""
        with self._autocast():
            embeddings: Tensor = self._forward(images)
        return embeddings

    def embed_alone(self, images: Tensor) -> Tensor:
        """See `Replica.embed_alone`."""
        with self._autocast():
            embeddings: Tensor = self.backbone(images)
        return embeddings

    def _autocast(self) -> torch.autocast:
        half = self._precision != torch.float32
        return torch.autocast(self.ranks.device.type, self._precision, enabled=half)

    def accumulate(self, last: bool) -> AbstractContextManager[object]:
        """See `Replica.accumulate`."""
        if last or not isinstance(self._forward, DistributedDataParallel):
            return nullcontext()
        return self._forward.no_sync()

    def backward(self, embeddings: Tensor, gradient: Tensor) -> None:
        """See `Replica.backward`."""
        # DDP divides the sum over ranks by their number, which this takes back.
        scaled: Tensor = self._scaler.scale(gradient * self.ranks.world_size)
        embeddings.backward(scaled.to(embeddings.dtype))

    def step(self, lr: float) -> Tensor:
        """See `Replica.step`."""
        self._scaler.unscale_(self._optimizer)
        if self._config.clip_norm is None:  # clipping at infinity would write every gradient again
            gradients = [parameter.grad for parameter in self.backbone.parameters() if parameter.grad is not None]
            norm = nn.utils.get_total_norm(gradients)
        else:
            norm = nn.utils.clip_grad_norm_(self.backbone.parameters(), self._config.clip_norm)
        if not norm.isfinite():
            if self._scaler.is_enabled():
                self._scaler.update()  # halves the scale, since unscale_ saw an infinity
            raise NonFiniteError(f"the backbone's gradient has norm {float(norm)}")
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self.discard()
        return norm

    def discard(self) -> None:
        """See `Replica.discard`."""
        self._optimizer.zero_grad(set_to_none=True)

    def backbone_state(self) -> dict[str, Tensor]:
        """See `Replica.backbone_state`."""
        return self.backbone.state_dict()

    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        """See `Replica.optimizer_state`."""
        state = {
            name: {key: kept_state(self._optimizer, parameter)[key] for key in OPTIMIZER_STATE[self._config.name]}
            for name, parameter in self.backbone.named_parameters()
        }
        first = next(iter(self.backbone.parameters()))
        state["scalars"] = {
            "steps": kept_state(self._optimizer, first).get("step", torch.zeros(())),
            "scale": torch.tensor(self._scaler.get_scale()),
            # Steps without overflow, after enough of which the scale grows.
            "growth": torch.tensor(self._scaler.state_dict().get("_growth_tracker", 0)),
        }
        return state

    def load_state(self, backbone: dict[str, Tensor], optimizer: dict[str, dict[str, Tensor]]) -> None:
        """See `Replica.load_state`."""
        self.backbone.load_state_dict(backbone)
        with torch.no_grad():
            for name, parameter in self.backbone.named_parameters():
                kept = kept_state(self._optimizer, parameter)
                for key in OPTIMIZER_STATE[self._config.name]:
                    kept[key].copy_(optimizer[name][key])
                if "step" in kept:
                    kept["step"].copy_(optimizer["scalars"]["steps"])
        if self._scaler.is_enabled():
            scaling = {
                "scale": float(optimizer["scalars"]["scale"]),
                "_growth_tracker": int(optimizer["scalars"]["growth"]),
            }
            self._scaler.load_state_dict(self._scaler.state_dict() | scaling)


def kept_state(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """What an optimizer keeps for a parameter; as zeros where it has not made a step yet."""
    adam = isinstance(optimizer, torch.optim.AdamW)
    kept: dict[str, Tensor] = optimizer.state[parameter]
    for key in OPTIMIZER_STATE["adamw" if adam else "sgd"]:
        if kept.get(key) is None:
            kept[key] = torch.zeros_like(parameter)
    if adam:
        kept.setdefault("step", torch.zeros(()))
    return kept


def build_replica(config: RunConfig, backbone: nn.Module, accumulation: int, ranks: Ranks) -> Replica:
    """The replica that `train.strategy` names.

    Args:
        config: the whole configuration.
        backbone: on this rank's device, with equal weights on every rank.
        accumulation: micro-batches per step.
        ranks: this process among the job's.

    Raises:
        UserError: options that the strategy does not have.
    """
    if config.train.strategy == "ddp":
        return DdpReplica(config, backbone, ranks)
    from dist_train.zero import ZeroReplica  # DeepSpeed takes seconds to import

    return ZeroReplica(config, backbone, accumulation, ranks)


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


def precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype that `train.precision` means on `device`."""
    if name == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    dtype: torch.dtype = getattr(torch, name)
    return dtype
