"""Learning rate as a pure function of the step."""

import math

from dist_train.config import OptimizerConfig, RunConfig


def rate_at(config: RunConfig, step: int, total_steps: int) -> float:
    """Learning rate of step `step` of a run of `total_steps` with its phases.

    A phase with keys of `optimizer` begins a schedule of its own, warm-up included, that ends where the next such
    phase begins; milestones count from its first step.
    """
    begins = [0, *(phase.at for phase in config.phases if phase.optimizer)]
    begin = max(each for each in begins if each <= step)
    end = min((each for each in begins if each > step), default=total_steps)
    return learning_rate(config.at(step).optimizer, step - begin, end - begin)


def learning_rate(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """Learning rate of step `step` of 0 .. total_steps - 1.

    Linear rise over `warmup_steps` (Goyal et al. 2017, section 2.2), then from the peak to `final_lr`: half a cosine
    (Loshchilov & Hutter 2017), a polynomial of the share of steps left, `gamma` times as much from each milestone on,
    or no decay.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "step":
        return config.lr * config.gamma ** sum(step >= milestone for milestone in config.milestones)
    done = (step - config.warmup_steps) / max(1, total_steps - 1 - config.warmup_steps)
    left = 1.0 - min(1.0, done)
    share = 0.5 * (1 - math.cos(math.pi * left)) if config.schedule == "cosine" else left**config.power
    return config.final_lr + (config.lr - config.final_lr) * share
