import math

import pytest
from pydantic import ValidationError

from dist_train.config import OptimizerConfig
from dist_train.train.schedule import learning_rate


def test_warmup_rises_linearly_to_the_peak_and_the_last_step_has_the_final_rate():
    config = OptimizerConfig(lr=0.4, warmup_steps=4, schedule="cosine", final_lr=0.01)
    rates = [learning_rate(config, step, 20) for step in range(20)]
    assert rates[:4] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert rates[4] == pytest.approx(0.4)
    assert rates[-1] == pytest.approx(0.01)
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_cosine_is_half_way_down_in_the_middle():
    config = OptimizerConfig(lr=1.0, schedule="cosine")
    assert learning_rate(config, 50, 101) == pytest.approx(0.5 * (1 + math.cos(math.pi / 2)))


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_polynomial_is_the_share_of_steps_left_to_the_power(power):
    config = OptimizerConfig(lr=1.0, schedule="polynomial", power=power)
    assert learning_rate(config, 25, 101) == pytest.approx(0.75**power)


def test_constant_stays_at_the_peak():
    config = OptimizerConfig(lr=0.3, schedule="constant", warmup_steps=1)
    assert {learning_rate(config, step, 10) for step in range(10)} == {0.3}


def test_a_step_schedule_falls_by_gamma_at_each_milestone():
    config = OptimizerConfig(lr=1.0, schedule="step", milestones=(3, 6), warmup_steps=2)
    rates = [learning_rate(config, step, 8) for step in range(8)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"schedule": "step"}, "schedule step and milestones go together"),
        ({"milestones": (5,)}, "schedule step and milestones go together"),
        ({"schedule": "step", "milestones": (6, 3)}, "milestones must be rising"),
        ({"schedule": "step", "milestones": (0, 3)}, "milestones must be rising"),
    ],
)
def test_milestones_that_mean_nothing_are_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        OptimizerConfig(**values)
