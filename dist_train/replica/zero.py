"""The backbone under DeepSpeed ZeRO: Rajbhandari et al., "ZeRO" (SC 2020), stages 1 to 3."""

import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from dist_train.config import RunConfig
from dist_train.errors import NonFiniteError, UserError
from dist_train.replica.base import OPTIMIZER_STATE, Replica, build_optimizer, kept_state, precision
from dist_train.runtime.ranks import Ranks

SHM_OPERATOR = "deepspeed_shm_comm"
STAGES = {"zero1": 1, "zero2": 2, "zero3": 3}


def check_options(config: RunConfig, half: torch.dtype) -> None:
    """Look whether a recipe asks ZeRO for what only DDP has.

    Args:
        config: its `train.strategy` is a stage of ZeRO.
        half: dtype of the backbone's arithmetic.

    Raises:
        UserError: it does.
    """
    if half == torch.float16:
        raise UserError("train.precision=float16 goes with train.strategy=ddp only; use bfloat16 or ddp")
    if config.train.strategy == "zero3" and config.train.ema_decay is not None:
        raise UserError("train.ema_decay needs whole weights on every rank; use zero2, or set it to null")
    if config.train.compile:
        raise UserError("train.compile goes with train.strategy=ddp only")


def _import_deepspeed() -> ModuleType:
    """DeepSpeed, told to be silent unless something fails, and not to compile what training does not use."""
    with _without_hint_of_cuda():
        import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # An operator for inference on CPUs: compiling it takes minutes at the first start, and a start that is killed
    # meanwhile leaves a lock at which all later ones wait for ever.
    deepspeed.ops.__compatible_ops__[SHM_OPERATOR] = False
    return deepspeed


@contextmanager
def _without_hint_of_cuda() -> Iterator[None]:
    """Keep torch from telling, on machines without a GPU, that it sees a compiler for GPUs."""
    hinting = logging.getLogger("torch.utils.cpp_extension")
    level = hinting.level
    hinting.setLevel(logging.ERROR)
    try:
        yield
    finally:
        hinting.setLevel(level)


class ZeroReplica(Replica):
    """Optimizer state (stage 1), gradients (2) and weights (3) of the backbone split over ranks by DeepSpeed.

    State dicts are gathered whole, so that checkpoints are those of `DdpReplica`.

    Args:
        config: the whole configuration.
        backbone: on this rank's device, with equal weights on every rank.
        accumulation: micro-batches per step.
        ranks: this process among the job's.

    Raises:
        UserError: one rank only, or an option that does not go with ZeRO.
    """

    def __init__(self, config: RunConfig, backbone: nn.Module, accumulation: int, ranks: Ranks) -> None:
        super().__init__(backbone, ranks)
        train = config.train
        self._stage = STAGES[train.strategy]
        self.partitioned = self._stage == 3
        self._names = OPTIMIZER_STATE[config.optimizer.name]
        half = precision(train.precision, ranks.device)
        if ranks.group is None:
            raise UserError(f"train.strategy={train.strategy} splits over ranks, but there is one; use ddp")
        check_options(config, half)
        if ranks.device.type == "cpu":
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        deepspeed = _import_deepspeed()
        backbone.to(memory_format=torch.contiguous_format)  # it broadcasts and cuts weights as flat memory
        micro = train.global_batch_size // (accumulation * ranks.world_size)
        settings = {
            "train_micro_batch_size_per_gpu": micro,
            "gradient_accumulation_steps": accumulation,
            "zero_optimization": {"stage": self._stage},
            # Said even when off: this library clips at 1.0 by itself.
            "gradient_clipping": config.optimizer.clip_norm or 0.0,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "torch_autocast": {"enabled": half != torch.float32, "dtype": str(half).removeprefix("torch.")},
        }
        self._engine: Any
        self._engine, *_ = deepspeed.initialize(
            model=backbone,
            optimizer=build_optimizer(config.optimizer, backbone),
            config=settings,
            dist_init_required=False,
        )

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

    def step(self, lr: float) -> Tensor:
        """See `Replica.step`."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        self._engine.step()
        norm = torch.as_tensor(self._engine.get_global_grad_norm() or 0.0)
        if not norm.isfinite():
            # The engine has seen it too and has not applied it.
            raise NonFiniteError("the backbone's gradient is not finite")
        return norm

    def discard(self) -> None:
        """See `Replica.discard`."""
        engine, zero = self._engine, self._engine.optimizer
        zero.zero_grad(set_to_none=True)
        # What the engine does itself when it sees an overflow in its own step.
        if self._stage == 3:
            zero.averaged_gradients = {}
        else:
            zero.micro_step_id = -1
            for group in zero.averaged_gradients:
                zero.averaged_gradients[group] = zero.all_grad_tensors[group] = None
        # The micro-batches left out of this step must not begin the next one.
        engine.micro_steps += -engine.micro_steps % engine.gradient_accumulation_steps()

    def backbone_state(self) -> dict[str, Tensor]:
        """See `Replica.backbone_state`."""
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(self.backbone.parameters()), enabled=self._stage == 3):
            return {name: tensor.detach().clone() for name, tensor in self.backbone.state_dict().items()}

    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        """See `Replica.optimizer_state`."""
        from deepspeed.utils import safe_get_full_optimizer_state

        steps = self._begin_state()
        state = {
            name: {key: safe_get_full_optimizer_state(parameter, key) for key in self._names}
            for name, parameter in self.backbone.named_parameters()
        }
        state["scalars"] = {
            "steps": steps[0].clone(),
            "scale": torch.ones(()),
            "growth": torch.zeros((), dtype=torch.int64),
        }
        return state

    def _begin_state(self) -> list[Tensor]:
        """Make the optimizer's tensors before its first step, and the engine find them; its counts of steps."""
        zero = self._engine.optimizer
        parts = zero.fp32_partitioned_groups_flat if self._stage == 3 else zero.single_partition_of_fp32_groups
        kept = [kept_state(zero.optimizer, part) for part in parts]
        if self._stage < 3:
            # It looks them up once, before those of the later parameter groups are there.
            zero._hp_optimizer_states_linked = False
            zero._lazy_init_hp_params_optimizer_state()
        return [one.get("step", torch.zeros(())) for one in kept]

    def load_backbone(self, state: dict[str, Tensor]) -> None:
        """See `Replica.load_backbone`."""
        import deepspeed
        from deepspeed.utils import safe_set_full_fp32_param

        with deepspeed.zero.GatheredParameters(
            list(self.backbone.parameters()), modifier_rank=0, enabled=self._stage == 3
        ):
            self.backbone.load_state_dict(state)
        self._begin_state()  # else the engine does not find its own copies of the weights
        for name, parameter in self.backbone.named_parameters():
            safe_set_full_fp32_param(parameter, self._partitioned(state[name]))

    def load_optimizer(self, state: dict[str, dict[str, Tensor]]) -> None:
        """See `Replica.load_optimizer`."""
        from deepspeed.utils import safe_set_full_optimizer_state

        for steps in self._begin_state():
            steps.copy_(state["scalars"]["steps"])
        for name, parameter in self.backbone.named_parameters():
            for key, value in state[name].items():
                safe_set_full_optimizer_state(parameter, self._partitioned(value), key)

    def _partitioned(self, whole: Tensor) -> Tensor:
        """`whole` as the engine takes it: stage 3 cuts a flat copy into equal parts, and expects zeros at its end."""
        if self._stage < 3:
            return whole
        flat = whole.reshape(-1)
        return nn.functional.pad(flat, (0, -len(flat) % self.ranks.world_size))
