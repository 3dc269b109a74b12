"""A backbone that stands still: whole on every rank, with nothing to train, to exchange or to split."""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dist_train.config import OptimizerConfig, TrainConfig
from dist_train.errors import NonFiniteError
from dist_train.replica.base import OPTIMIZER_STATE, Replica, Standing, compile_backbone, compute_dtype, count_scalars
from dist_train.runtime.ranks import Ranks
from dist_train.runtime.verdict import Verdict


class StillReplica(Replica):
    """A backbone without a parameter that requires a gradient, which takes the place of any strategy.

    Args:
        train: precision, and whether the backbone is compiled.
        optimizer: of which a checkpoint holds zeros.
        backbone: on this rank's device, with equal weights on every rank.
        ranks: this process among the job's.
        standing: what stands still.
    """

    def __init__(
        self, train: TrainConfig, optimizer: OptimizerConfig, backbone: nn.Module, ranks: Ranks, standing: Standing
    ) -> None:
        super().__init__(backbone, ranks, standing)
        self._optimizer = optimizer.name
        self._dtype = compute_dtype(train.precision, ranks.device)
        self._finite = torch.ones((), device=ranks.device)
        if train.compile:
            compile_backbone(backbone, ranks.device)

    def embed(self, images: Tensor) -> Tensor:
        """See `Replica.embed`; the result has no graph behind it."""
        with torch.no_grad():
            return self.embed_alone(images)

    def embed_alone(self, images: Tensor) -> Tensor:
        """See `Replica.embed_alone`."""
        with torch.autocast(self.ranks.device.type, self._dtype, enabled=self._dtype != torch.float32):
            embeddings: Tensor = self.backbone(images)
        return embeddings

    def accumulate(self, last: bool) -> AbstractContextManager[object]:
        """See `Replica.accumulate`."""
        return nullcontext()

    def backward(self, embeddings: Tensor, gradient: Tensor) -> None:
        """See `Replica.backward`; only looks whether the gradient is finite, as a gradient of weights would tell."""
        self._finite *= gradient.isfinite().all()

    def step(self, lr: float, verdict: Verdict | None = None) -> Tensor:
        """See `Replica.step`; the gradient of no weights has norm 0."""
        if self.ranks.group is not None:
            dist.all_reduce(self._finite, dist.ReduceOp.MIN, group=self.ranks.group)
        verdict = verdict or Verdict(self.ranks.device)
        verdict.check(self._finite > 0, lambda _: NonFiniteError("the gradient of the embeddings is not finite"))
        self.discard()
        return torch.zeros((), device=self.ranks.device)

    def discard(self) -> None:
        """See `Replica.discard`."""
        self._finite.fill_(1)

    def backbone_state(self) -> dict[str, Tensor]:
        """See `Replica.backbone_state`."""
        return self.backbone.state_dict()

    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        """See `Replica.optimizer_state`; the optimizer has not begun."""
        names = OPTIMIZER_STATE[self._optimizer]
        state = {
            name: {key: torch.zeros_like(parameter) for key in names}
            for name, parameter in self.backbone.named_parameters()
        }
        scaler = torch.amp.GradScaler(self.ranks.device.type, enabled=self._dtype == torch.float16)
        state["scalars"] = count_scalars({}, self.standing.late if self._optimizer == "adamw" else frozenset()) | {
            "scale": torch.tensor(scaler.get_scale()),
            "growth": torch.zeros((), dtype=torch.int64),
        }
        return state

    def load_backbone(self, state: dict[str, Tensor]) -> None:
        """See `Replica.load_backbone`."""
        self.backbone.load_state_dict(state)

    def load_optimizer(self, state: dict[str, dict[str, Tensor]]) -> None:
        """See `Replica.load_optimizer`; nothing is kept of it."""

    def close(self) -> None:
        """See `Replica.close`; nothing holds it."""
