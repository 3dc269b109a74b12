import math

import pytest

from dist_train.config import OptimizerConfig
from dist_train.schedule import learning_rate


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
