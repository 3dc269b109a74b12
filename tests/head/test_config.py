import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from dist_train.head import HeadConfig
from dist_train.head.margins.table import MARGINS


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.01])
def test_a_sample_rate_outside_zero_to_one_is_refused(rate):
    with pytest.raises(ValidationError, match="sample_rate"):
        HeadConfig(sample_rate=rate)


def test_a_margin_parameter_that_the_margin_does_not_read_is_refused_with_its_readers():
    with pytest.raises(ValidationError, match=r"'cosface' does not read \['m2'\].*'arcface'"):
        HeadConfig(margin="cosface", m2=0.4)


def test_every_margin_parameter_is_a_field():
    for spec in MARGINS.values():
        assert spec.reads <= set(HeadConfig.model_fields)


def test_plain_softmax_refuses_what_needs_cosines():
    with pytest.raises(ValidationError, match="no cosines"):
        HeadConfig(margin="softmax", scale=64)


def test_a_mapped_store_needs_a_directory():
    with pytest.raises(ValidationError, match="storage_dir"):
        HeadConfig(storage="mmap")
    assert HeadConfig(storage="mmap", storage_dir=Path("x")).storage_dir == Path("x")


@pytest.mark.parametrize(
    "section", [{"magface": {"lower_norm": 120.0}}, {"magface": {"lower_margin": 0.9}}, {"adaptive": {"lowest": 0.8}}]
)
def test_ranges_of_margins_that_are_upside_down_are_refused(section):
    with pytest.raises(ValidationError, match="must"):
        HeadConfig(margin=next(iter(section)), **section)


def test_the_section_and_the_sizes_of_a_head_are_read_without_torch():
    names = "dist_train.head.config, dist_train.head.margins.table, dist_train.head.sizes, launch.plan_model"
    program = f"import sys, {names}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
