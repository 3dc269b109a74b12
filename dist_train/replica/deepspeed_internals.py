"""The parts of DeepSpeed that are not its public interface and that `ZeroReplica` needs, with the versions they are of.

Three things cannot be had otherwise: forgetting the gradients of a refused step, reading and writing the optimizer's
tensors before its first step, and a start that neither talks nor compiles. `INTERNALS` lists every attribute that is
touched here; an engine that lacks one is refused when it is built, not after hours of training.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from types import ModuleType
from typing import Any, cast

from packaging.specifiers import SpecifierSet
from torch import Tensor
from torch.optim import Optimizer

from dist_train.errors import UserError

VERSIONS = ">=0.19.8,<0.20"
"""Versions of DeepSpeed that have these parts; the same range stands in `pyproject.toml`."""

INTERNALS = {
    "engine": ("micro_steps", "optimizer"),
    "optimizer of stages 1 and 2": (
        "micro_step_id",
        "averaged_gradients",
        "all_grad_tensors",
        "single_partition_of_fp32_groups",
        "_hp_optimizer_states_linked",
        "_lazy_init_hp_params_optimizer_state",
        "optimizer",
    ),
    "optimizer of stage 3": (
        "averaged_gradients",
        "fp32_partitioned_groups_flat",
        "sub_group_to_group_id",
        "optimizer",
    ),
}

SHM_OPERATOR = "deepspeed_shm_comm"


def import_deepspeed() -> ModuleType:
    """DeepSpeed, silent unless something fails, and without the compilation of what training does not use.

    Raises:
        UserError: another version than `VERSIONS`, or none.
    """
    try:
        found = metadata.version("deepspeed")
    except metadata.PackageNotFoundError:
        found = "not installed"
    if found == "not installed" or not SpecifierSet(VERSIONS).contains(found, prereleases=True):
        raise UserError(
            f"train.strategy: ZeRO works with deepspeed{VERSIONS}, found {found}; "
            f"pip install 'deepspeed{VERSIONS}', or use ddp"
        )
    with _without_hint_of_cuda():
        import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # An operator for inference on CPUs: compiling it takes minutes at the first start, and a start that is killed
    # meanwhile leaves a lock at which all later ones wait for ever.
    deepspeed.ops.__compatible_ops__[SHM_OPERATOR] = False
    return cast(ModuleType, deepspeed)


@contextmanager
def _without_hint_of_cuda() -> Iterator[None]:
    """Silence of torch, on machines without a GPU, about a compiler for GPUs."""
    hinting = logging.getLogger("torch.utils.cpp_extension")
    level = hinting.level
    hinting.setLevel(logging.ERROR)
    try:
        yield
    finally:
        hinting.setLevel(level)


def check_internals(engine: Any, stage: int) -> None:  # noqa: ANN401 - DeepSpeed has no types
    """Look whether an engine has every part of `INTERNALS` that its stage needs.

    Raises:
        UserError: it lacks some, which are named.
    """
    kind = "optimizer of stage 3" if stage == 3 else "optimizer of stages 1 and 2"
    missing = [f"engine.{name}" for name in INTERNALS["engine"] if not hasattr(engine, name)]
    zero = getattr(engine, "optimizer", None)
    missing += [f"{kind}: {name}" for name in INTERNALS[kind] if not hasattr(zero, name)]
    if missing:
        raise UserError(
            f"train.strategy=zero{stage}: this DeepSpeed ({metadata.version('deepspeed')}) lacks {', '.join(missing)}; "
            f"install a version of {VERSIONS} that has them, e.g. the oldest, or use ddp"
        )


def forget_gradients(engine: Any, stage: int) -> None:  # noqa: ANN401
    """Drop the gradients of a step that is not made: what the engine does itself on an overflow in its own step."""
    zero = engine.optimizer
    zero.zero_grad(set_to_none=True)
    if stage == 3:
        zero.averaged_gradients = {}
    else:
        zero.micro_step_id = -1
        for group in zero.averaged_gradients:
            zero.averaged_gradients[group] = zero.all_grad_tensors[group] = None
    # The micro-batches left out of this step must not begin the next one.
    engine.micro_steps += -engine.micro_steps % engine.gradient_accumulation_steps()


def inner_optimizer(engine: Any, stage: int) -> tuple[Optimizer, list[Tensor], list[int]]:  # noqa: ANN401
    """The optimizer that the engine wraps, what it updates, and the parameter group of each.

    That is this rank's weights in float32, flat: one for each group, or in stage 3 for each part of a group.
    """
    zero = engine.optimizer
    if stage < 3:
        weights = zero.single_partition_of_fp32_groups
        return zero.optimizer, weights, list(range(len(weights)))
    weights = zero.fp32_partitioned_groups_flat
    return zero.optimizer, weights, [zero.sub_group_to_group_id[part] for part in range(len(weights))]


def link_optimizer_state(engine: Any, stage: int) -> None:  # noqa: ANN401
    """Let DeepSpeed's functions for an optimizer's whole tensors find those that were made before its first step."""
    if stage == 3:
        return  # there they look when they are called
    # Of stages 1 and 2 they look once, at a time when the tensors of the later parameter groups are not there.
    engine.optimizer._hp_optimizer_states_linked = False
    engine.optimizer._lazy_init_hp_params_optimizer_state()
