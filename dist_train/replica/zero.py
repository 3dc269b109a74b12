"""The backbone under DeepSpeed ZeRO: Rajbhandari et al., "ZeRO" (SC 2020), stages 1 to 3."""

import os
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from dist_train.config import OptimizerConfig, TrainConfig
from dist_train.errors import NonFiniteError, UserError
from dist_train.replica.base import (
    NOTHING,
    OPTIMIZER_STATE,
    Replica,
    Standing,
    compute_dtype,
    count_of,
    count_scalars,
    kept_state,
)
from dist_train.replica.deepspeed_internals import (
    check_internals,
    forget_gradients,
    import_deepspeed,
    inner_optimizer,
    link_optimizer_state,
)
from dist_train.replica.groups import build_backbone_optimizer, set_rates
from dist_train.runtime.ranks import Ranks
from dist_train.runtime.verdict import Verdict

STAGES = {"zero1": 1, "zero2": 2, "zero3": 3}


def check_options(train: TrainConfig, dtype: torch.dtype) -> None:
    """Look whether a recipe asks ZeRO for what only DDP has.

    Args:
        train: its `strategy` is a stage of ZeRO.
        dtype: of the backbone's arithmetic.

    Raises:
        UserError: it does.
    """
    if dtype == torch.float16:
        raise UserError("train.precision=float16 goes with train.strategy=ddp only; use bfloat16 or ddp")
    if train.strategy == "zero3" and train.ema_decay is not None:
        raise UserError("train.ema_decay needs whole weights on every rank; use zero2, or set it to null")
    if train.compile:
        raise UserError("train.compile goes with train.strategy=ddp only")


def open_deepspeed(train: TrainConfig, ranks: Ranks) -> ModuleType:
    """DeepSpeed, for ranks and options that it can work with.

    Raises:
        UserError: one rank only, an option that does not go with ZeRO, or a DeepSpeed that does not.
    """
    if ranks.group is None:
        raise UserError(f"train.strategy={train.strategy} splits over ranks, but there is one; use ddp")
    check_options(train, compute_dtype(train.precision, ranks.device))
    if ranks.device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    return import_deepspeed()


class ZeroReplica(Replica):
    """Optimizer state (stage 1), gradients (2) and weights (3) of the backbone split over ranks by DeepSpeed.

    State dicts are gathered whole, so that checkpoints are those of `DdpReplica`.

    Args:
        train: strategy, precision and batch sizes.
        optimizer: the backbone's optimizer.
        backbone: on this rank's device, with equal weights on every rank, and something to train.
        accumulation: micro-batches per step.
        ranks: this process among the job's.
        standing: what stands still.

    Raises:
        UserError: see `open_deepspeed`; or a DeepSpeed without a part that is needed.
    """

    def __init__(
        self,
        train: TrainConfig,
        optimizer: OptimizerConfig,
        backbone: nn.Module,
        accumulation: int,
        ranks: Ranks,
        standing: Standing = NOTHING,
    ) -> None:
        super().__init__(backbone, ranks, standing)
        self._stage = STAGES[train.strategy]
        self.partitioned = self._stage == 3
        self._names = OPTIMIZER_STATE[optimizer.name]
        self._late = standing.late if optimizer.name == "adamw" else frozenset()
        dtype = compute_dtype(train.precision, ranks.device)
        deepspeed = open_deepspeed(train, ranks)
        backbone.to(memory_format=torch.contiguous_format)  # it broadcasts and cuts weights as flat memory
        micro = train.global_batch_size // (accumulation * ranks.world_size)
        settings = {
            "train_micro_batch_size_per_gpu": micro,
            "gradient_accumulation_steps": accumulation,
            "zero_optimization": {"stage": self._stage},
            # Said even when off: this library clips at 1.0 by itself.
            "gradient_clipping": optimizer.clip_norm or 0.0,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "torch_autocast": {"enabled": dtype != torch.float32, "dtype": str(dtype).removeprefix("torch.")},
        }
        self._engine: Any
        self._engine, *_ = deepspeed.initialize(
            model=backbone,
            optimizer=build_backbone_optimizer(optimizer, backbone, standing.late),
            config=settings,
            dist_init_required=False,
        )
        check_internals(self._engine, self._stage)

    def embed(self, images: Tensor) -> Tensor:
        """See `Replica.embed`."""
        embeddings: Tensor = self._engine(images)
        return embeddings

    def embed_alone(self, images: Tensor) -> Tensor:
        """See `Replica.embed_alone`; gradients are exchanged when they reach the weights."""
        return self.embed(images)

    def accumulate(self, last: bool) -> AbstractContextManager[object]:
        """The engine counts micro-batches itself."""
        self._last = last
        return nullcontext()

    def backward(self, embeddings: Tensor, gradient: Tensor) -> None:
        """See `Replica.backward`."""
        # The engine divides by the micro-batches of a step, which the head's gradient has done, and by the ranks.
        factor = self.ranks.world_size * self._engine.gradient_accumulation_steps()
        self._engine.backward((embeddings * (gradient * factor).to(embeddings.dtype)).sum())
        if not self._last:
            self._engine.step()  # counts the micro-batch; the weights change after the last one only

    def step(self, lr: float, verdict: Verdict | None = None) -> Tensor:
        """See `Replica.step`; the engine waits for the device, and no verdict is late."""
        set_rates(self._engine.optimizer, lr)
        self._engine.step()
        norm = torch.as_tensor(self._engine.get_global_grad_norm() or 0.0)
        if not norm.isfinite():
            # The engine has seen it too and has not applied it.
            raise NonFiniteError("the backbone's gradient is not finite")
        return norm

    def discard(self) -> None:
        """See `Replica.discard`."""
        forget_gradients(self._engine, self._stage)

    def backbone_state(self) -> dict[str, Tensor]:
        """See `Replica.backbone_state`."""
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(self.backbone.parameters()), enabled=self._stage == 3):
            return {name: tensor.detach().clone() for name, tensor in self.backbone.state_dict().items()}

    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        """See `Replica.optimizer_state`."""
        from deepspeed.utils import safe_get_full_optimizer_state

        counts = dict(self._begin_state())
        state = {}
        for name, parameter in self.backbone.named_parameters():
            if parameter.requires_grad:
                state[name] = {key: safe_get_full_optimizer_state(parameter, key) for key in self._names}
            else:
                whole = getattr(parameter, "ds_shape", parameter.shape)  # stage 3 holds a part alone
                state[name] = {key: parameter.new_zeros(whole) for key in self._names}
        state["scalars"] = count_scalars(counts, self._late) | {
            "scale": torch.ones(()),
            "growth": torch.zeros((), dtype=torch.int64),
        }
        return state

    def _begin_state(self) -> list[tuple[bool, Tensor]]:
        """Make the optimizer's tensors before its first step, and the engine find them.

        Returns:
            For each flat group, whether it is late, and its count of steps [].
        """
        inner, weights, groups = inner_optimizer(self._engine, self._stage)
        kept = [kept_state(inner, part) for part in weights]
        link_optimizer_state(self._engine, self._stage)
        late = (inner.param_groups[group]["late"] for group in groups)
        return [(one, state.get("step", torch.zeros(()))) for one, state in zip(late, kept, strict=True)]

    def load_backbone(self, state: dict[str, Tensor]) -> None:
        """See `Replica.load_backbone`."""
        import deepspeed
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

        give = safe_set_local_fp32_param if self.partitioned else safe_set_full_fp32_param
        with deepspeed.zero.GatheredParameters(
            list(self.backbone.parameters()), modifier_rank=0, enabled=self._stage == 3
        ):
            self.backbone.load_state_dict(state)
        self._begin_state()  # else the engine does not find its own copies of the weights
        for name, parameter in self._trained():
            give(parameter, self._share(state[name], parameter))

    def load_optimizer(self, state: dict[str, dict[str, Tensor]]) -> None:
        """See `Replica.load_optimizer`."""
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        give = safe_set_local_optimizer_state if self.partitioned else safe_set_full_optimizer_state
        for is_late, steps in self._begin_state():
            steps.copy_(count_of(state["scalars"], is_late))
        for name, parameter in self._trained():
            for key, value in state[name].items():
                give(parameter, self._share(value, parameter), key)

    def close(self) -> None:
        """See `Replica.close`."""
        self._engine.destroy()

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, one) for name, one in self.backbone.named_parameters() if one.requires_grad]

    def _share(self, whole: Tensor, parameter: Any) -> Tensor:  # noqa: ANN401 - with what stage 3 adds
        """What the engine takes of `whole`: in stage 3 this rank's share of it, flat, all of a length."""
        if not self.partitioned:
            return whole
        length = parameter.ds_tensor.numel()
        share = whole.reshape(-1)[length * self.ranks.rank :][:length]
        return nn.functional.pad(share, (0, length - len(share)))
