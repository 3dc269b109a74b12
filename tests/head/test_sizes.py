"""Sizes that the head and the planner share. Tier 1: no ranks, no devices."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_train.head import HeadConfig
from dist_train.head.sizes import block_classes, class_range, logits_bytes, spans


@given(classes=st.integers(1, 500), world_size=st.integers(1, 9))
def test_the_ranks_share_all_classes_and_none_has_more_than_the_first(classes, world_size):
    ranges = [class_range(classes, rank, world_size) for rank in range(world_size)]
    assert [i for start, stop in ranges for i in range(start, stop)] == list(range(classes))
    assert max(stop - start for start, stop in ranges) == ranges[0][1] - ranges[0][0]


@given(low=st.integers(0, 50), length=st.integers(0, 50), block=st.integers(1, 20))
def test_spans_cover_a_range_and_lie_within_one_block_each(low, length, block):
    cuts = list(spans(low, low + length, block))
    assert [i for start, stop in cuts for i in range(start, stop)] == list(range(low, low + length))
    assert all(start // block == (stop - 1) // block for start, stop in cuts)


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
@pytest.mark.parametrize("settings", [{}, {"centers_per_class": 3}, {"block_rows": 700}, {"logits_budget_mb": 1}])
def test_the_logits_of_a_block_stay_within_the_budget(device_type, settings):
    config = HeadConfig(**settings)
    block = block_classes(config, 256, device_type, config.logits_budget(device_type))
    assert 0 < logits_bytes(config, block, 256) <= config.logits_budget(device_type)
