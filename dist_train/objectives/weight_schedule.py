"""Weights of objectives as pure functions of the step."""

from dist_train.config import RunConfig
from dist_train.objectives.config import ObjectiveConfig


def weight_at(config: RunConfig, name: str, step: int) -> float:
    """Weight of the objective `name` in step `step` of a run with its phases.

    Over `warmup_steps` a weight goes linearly from 0, or from what it was before the phase that names it, to what the
    recipe says.
    """
    weight, begin, held = 0.0, 0, None
    for at, recipe in config.recipes:
        section = recipe.objectives.given().get(name)
        if at > step:
            break
        if section != held:
            # What the weight had come to by then, which is less than meant where a warm-up was cut short.
            weight, begin, held = (_between(weight, held, at - begin - 1) if at else 0.0), at, section
    return _between(weight, held, step - begin)


def _between(before: float, section: ObjectiveConfig | None, step: int) -> float:
    """The weight in step `step` since it was `before`."""
    if section is None:
        return before
    done = step + 1
    if done >= section.warmup_steps:
        return section.weight
    return before + (section.weight - before) * (done / section.warmup_steps)
