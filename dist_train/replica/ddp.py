"""The backbone whole on every rank, under DistributedDataParallel."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dist_train.config import OptimizerConfig, TrainConfig
from dist_train.errors import NonFiniteError
from dist_train.replica.base import (
    NOTHING,
    OPTIMIZER_STATE,
    Replica,
    Standing,
    compile_backbone,
    compute_dtype,
    count_of,
    count_scalars,
    kept_state,
)
from dist_train.replica.groups import build_backbone_optimizer, set_rates
from dist_train.runtime.ranks import Ranks
from dist_train.runtime.torch_names import OWN_BUFFERS
from dist_train.runtime.verdict import Verdict, reads_late


class DdpReplica(Replica):
    """The backbone under DistributedDataParallel; the plain module where the rank is alone.

    Args:
        train: precision, and whether the backbone is compiled.
        optimizer: the backbone's optimizer.
        backbone: on this rank's device, with equal weights on every rank, and something to train.
        ranks: this process among the job's.
        standing: what stands still.
    """

    def __init__(
        self,
        train: TrainConfig,
        optimizer: OptimizerConfig,
        backbone: nn.Module,
        ranks: Ranks,
        standing: Standing = NOTHING,
    ) -> None:
        super().__init__(backbone, ranks, standing)
        self._config = optimizer
        self._late = standing.late if optimizer.name == "adamw" else frozenset()
        self._dtype = compute_dtype(train.precision, ranks.device)
        late = reads_late(ranks.device)
        self._optimizer = build_backbone_optimizer(optimizer, backbone, standing.late, fused=late)
        if late:  # the kernel makes these itself, but leaves them as it finds the memory if its first step is refused
            for group in self._optimizer.param_groups:
                for parameter in group["params"]:
                    kept_state(self._optimizer, parameter)
        # Embeddings' gradients are scaled rather than the loss, so that the head stays in plain float32.
        self._scaler = torch.amp.GradScaler(ranks.device.type, enabled=self._dtype == torch.float16)
        self._forward: nn.Module = backbone
        if train.compile:
            compile_backbone(backbone, ranks.device)
        if ranks.group is not None:
            ids = [ranks.device.index] if ranks.device.type == "cuda" else None
            self._forward = DistributedDataParallel(
                backbone,
                device_ids=ids,
                process_group=ranks.group,
                gradient_as_bucket_view=True,
                **OWN_BUFFERS,
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
        half = self._dtype != torch.float32
        return torch.autocast(self.ranks.device.type, self._dtype, enabled=half)

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

    def step(self, lr: float, verdict: Verdict | None = None) -> Tensor:
        """See `Replica.step`."""
        self._scaler.unscale_(self._optimizer)
        if self._config.clip_norm is None:  # clipping at infinity would write every gradient again
            gradients = [parameter.grad for parameter in self.backbone.parameters() if parameter.grad is not None]
            norm = nn.utils.get_total_norm(gradients)
        else:
            norm = nn.utils.clip_grad_norm_(self.backbone.parameters(), self._config.clip_norm)
        verdict = verdict or Verdict(self.ranks.device)
        before = verdict.proceed
        try:
            verdict.check(norm.isfinite(), lambda _: NonFiniteError(f"the backbone's gradient has norm {float(norm)}"))
        except NonFiniteError:
            self._scaler.update()  # halves the scale, since unscale_ saw an infinity
            raise
        set_rates(self._optimizer, lr)
        if verdict.proceed is None or before is None:
            self._scaler.step(self._optimizer)
            self._scaler.update()
        else:
            self._step_if(verdict.proceed)
            self._scale_if(before)
        self.discard()
        return norm

    def _step_if(self, proceed: Tensor) -> None:
        """Let the optimizer do its step, whose gradients are unscaled, where `proceed` [] is true."""
        optimizer: Any = self._optimizer  # as `GradScaler.step` tells it
        optimizer.grad_scale, optimizer.found_inf = None, (~proceed).float()
        optimizer.step()
        del optimizer.grad_scale, optimizer.found_inf

    def _scale_if(self, proceed: Tensor) -> None:
        """Follow the gradients with the scale, unless the step was refused before there were any."""
        if not self._scaler.is_enabled():
            return
        state = [cast(Tensor, one) for one in (self._scaler._scale, self._scaler._growth_tracker)]
        before = [one.clone() for one in state]
        self._scaler.update()
        for one, kept in zip(state, before, strict=True):
            one.copy_(torch.where(proceed, one, kept))

    def discard(self) -> None:
        """See `Replica.discard`."""
        self._optimizer.zero_grad(set_to_none=True)

    def backbone_state(self) -> dict[str, Tensor]:
        """See `Replica.backbone_state`."""
        return self.backbone.state_dict()

    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        """See `Replica.optimizer_state`."""
        state = {name: self._kept(parameter) for name, parameter in self.backbone.named_parameters()}
        counts = {
            group["late"]: kept_state(self._optimizer, group["params"][0]).get("step", torch.zeros(())).cpu()
            for group in self._optimizer.param_groups
        }
        state["scalars"] = count_scalars(counts, self._late) | {
            "scale": torch.tensor(self._scaler.get_scale()),
            # Steps without overflow, after enough of which the scale grows.
            "growth": torch.tensor(self._scaler.state_dict().get("_growth_tracker", 0)),
        }
        return state

    def _kept(self, parameter: Tensor) -> dict[str, Tensor]:
        """What a checkpoint keeps of the optimizer for a parameter; zeros where it stands still."""
        names = OPTIMIZER_STATE[self._config.name]
        if not parameter.requires_grad:
            return {key: torch.zeros_like(parameter) for key in names}
        kept = kept_state(self._optimizer, parameter)
        return {key: kept[key] for key in names}

    def load_backbone(self, state: dict[str, Tensor]) -> None:
        """See `Replica.load_backbone`."""
        self.backbone.load_state_dict(state)

    def load_optimizer(self, state: dict[str, dict[str, Tensor]]) -> None:
        """See `Replica.load_optimizer`."""
        with torch.no_grad():
            for name, parameter in self.backbone.named_parameters():
                if not parameter.requires_grad:
                    continue
                kept = kept_state(self._optimizer, parameter)
                for key in OPTIMIZER_STATE[self._config.name]:
                    kept[key].copy_(state[name][key])
                if "step" in kept:
                    kept["step"].copy_(count_of(state["scalars"], name in self._late))
        if self._scaler.is_enabled():
            scaling = {
                "scale": float(state["scalars"]["scale"]),
                "_growth_tracker": int(state["scalars"]["growth"]),
            }
            self._scaler.load_state_dict(self._scaler.state_dict() | scaling)

    def close(self) -> None:
        """See `Replica.close`; nothing holds it."""
