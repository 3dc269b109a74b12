"""The backbone replicated over ranks, with its optimizer, behind one small interface."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dist_train.runtime.ranks import Ranks
from dist_train.runtime.verdict import Verdict

# Tensors that each optimizer keeps for a parameter; with those of the backbone they make a checkpoint.
OPTIMIZER_STATE = {"sgd": ("momentum_buffer",), "adamw": ("exp_avg", "exp_avg_sq")}


@dataclass(frozen=True, slots=True)
class Standing:
    """What stands still in a backbone, now or in the first steps of a run.

    Attributes:
        modules: those that stay in evaluation mode now, each with all that is in it.
        buffers: names of the buffers that stand still now.
        late: names of the parameters that stand still in the first steps. AdamW's bias corrections depend on how often
            a parameter was updated, so steps that these have missed are counted.
    """

    modules: tuple[nn.Module, ...] = ()
    buffers: AbstractSet[str] = frozenset()
    late: AbstractSet[str] = frozenset()


NOTHING = Standing()


class Replica(ABC):
    """A backbone copied to every rank, and its optimizer.

    The head stands outside: it takes the embeddings as a leaf and gives their gradient back, which `backward` sends
    through the network. So the same head serves every way of replicating a backbone, and state dicts have one form
    for all of them: a run may go on with another one.

    Parameters that require no gradient when a replica is built stand still in it: they get no gradient, no decay and no
    momentum, and their optimizer's tensors are zeros. `standing` says what else follows from that.
    """

    partitioned = False
    """Whether a rank has parts of the weights only, so that it cannot use the backbone alone."""

    def __init__(self, backbone: nn.Module, ranks: Ranks, standing: Standing) -> None:
        self.backbone = backbone
        self.ranks = ranks
        self.standing = standing
        self._trains = False

    def train(self) -> None:
        """Put the backbone to training mode, but for what stands still."""
        if self._trains and self.backbone.training:
            return  # the walk over a hundred layers takes milliseconds, in which a GPU waits
        self._trains = True
        self.backbone.train()
        for module in self.standing.modules:
            module.eval()

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
    def step(self, lr: float, verdict: Verdict | None = None) -> Tensor:
        """Update the weights and forget the gradients; the L2 norm of the gradient before clipping, [].

        Args:
            lr: learning rate.
            verdict: on the step so far, and then on its gradient; where it refuses, the weights are as before. None:
                one that is read at once.

        Raises:
            NonFiniteError: the gradient is not finite, on all ranks.
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

    @abstractmethod
    def close(self) -> None:
        """Let go of the backbone, since another replica takes this one's place; nothing else is called afterwards."""

    def average_buffers(self) -> None:
        """Make BatchNorm's running statistics the mean over ranks; a collective.

        Between two calls they are each rank's own, which spares an exchange in every forward pass. Those that stand
        still are equal, and stay as they are to the last bit, which a mean of equals may not have.
        """
        if self.ranks.group is None:
            return
        for name, buffer in self.backbone.named_buffers():
            if buffer.is_floating_point() and name not in self.standing.buffers:
                dist.all_reduce(buffer, group=self.ranks.group)
                buffer /= self.ranks.world_size


def compile_backbone(backbone: nn.Module, device: torch.device) -> None:
    """Let torch's compiler make the backbone's passes at the first of them; on a GPU they are played as CUDA graphs.

    Without graphs the compiled passes take longer than the others where the host is what a step waits for.
    """
    backbone.compile(mode="reduce-overhead" if device.type == "cuda" else "default")


def kept_state(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """The tensors that an optimizer keeps for a parameter; zeros where it has not made a step yet."""
    adam = isinstance(optimizer, torch.optim.AdamW)
    kept: dict[str, Tensor] = optimizer.state[parameter]
    for key in OPTIMIZER_STATE["adamw" if adam else "sgd"]:
        if kept.get(key) is None:
            kept[key] = torch.zeros_like(parameter)
    if adam:
        fused = optimizer.defaults["fused"]
        kept.setdefault("step", torch.zeros((), device=parameter.device if fused else None))
    return kept


def count_scalars(counts: Mapping[bool, Tensor], late: AbstractSet[str]) -> dict[str, Tensor]:
    """What a checkpoint keeps of AdamW's counts of steps.

    Args:
        counts: [] each, of the parameters that are late (True) and of the others; without those that stand still.
        late: their names.
    """
    none = torch.zeros(())
    steps = counts.get(False, counts.get(True, none))
    scalars = {"steps": steps.clone()}
    if late:
        scalars["missed"] = steps - counts.get(True, none)
    return scalars


def count_of(scalars: Mapping[str, Tensor], is_late: bool) -> Tensor:
    """AdamW's count of steps [] of parameters that are late, or of the others."""
    return scalars["steps"] - scalars["missed"] if is_late and "missed" in scalars else scalars["steps"]


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of the backbone's arithmetic that a recipe's `train.precision` means on `device`."""
    if precision == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast else torch.float32
    dtype: torch.dtype = getattr(torch, precision)
    return dtype
