"""What phases ask of a run that its recipe alone cannot tell: its steps, and a network that takes other sizes."""

import torch
from torch import nn

from dist_train.backbones import build_backbone
from dist_train.config import RunConfig
from dist_train.errors import UserError


def check_phases(config: RunConfig, steps: int, stored_px: int) -> None:
    """See that every phase can come.

    Args:
        config: the whole recipe.
        steps: of the run.
        stored_px: side of the set's pictures, which the recipe may leave as they are.

    Raises:
        UserError: a phase after the last step, or a picture size that the network would need other parameters for.
    """
    if config.phases and config.phases[-1].at >= steps:
        number, last = len(config.phases) - 1, config.phases[-1].at
        raise UserError(f"phases.{number}.at {last}: such a step never comes in a run of {steps} steps, from 0 on")
    sizes = [recipe.data.image_size or stored_px for _, recipe in config.recipes]
    first: nn.Module | None = None
    for number, size in enumerate(sizes):
        if size == sizes[0] or size in sizes[:number]:
            continue
        key = f"phases.{number - 1}.data.image_size"
        with torch.device("meta"):
            first = first or build_backbone(config.backbone, sizes[0])
            _check_size(config, key, first, sizes[0], size)


def _check_size(config: RunConfig, key: str, first: nn.Module, first_px: int, size: int) -> None:
    """See that a network for pictures of `first_px` takes those of `size`, and is the same that is built for them."""
    name = config.backbone.name
    way_out = "take a network whose parameters do not depend on the size, such as timm/resnet50, or one size throughout"
    other = {key: value.shape for key, value in build_backbone(config.backbone, size).state_dict().items()}
    for parameter, value in first.state_dict().items():
        if other.get(parameter) != value.shape:
            raise UserError(
                f"{key} {size}: backbone.name={name} has other parameters than at {first_px} px, such as {parameter} "
                f"{list(other.get(parameter, ()))} for {list(value.shape)}; {way_out}"
            )
    try:
        first.eval()(torch.empty(2, 3, size, size))
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{key} {size}: backbone.name={name}, built for {first_px} px, does not take them: {reason}; {way_out}"
        ) from error
