import dataclasses
import json
import re

import pytest

from dist_train.errors import UserError
from dist_train.head import HeadConfig
from launch.plan import largest, report, whole_number
from launch.plan_advice import advice
from launch.plan_hardware import GIB
from launch.plan_model import fits, gpu_memory
from tests.launch.recipes import headcount_here
from tests.launch.test_plan_model import setup


@pytest.mark.parametrize(("text", "number"), [("100e6", 10**8), ("1", 1), ("2_000", 2000), ("1,000,000", 10**6)])
def test_numbers_are_read_as_people_write_them(text, number):
    assert whole_number("--identities", text) == number


@pytest.mark.parametrize("text", ["0", "-5", "1.5", "many", "nan", "inf", "1e13", ""])
def test_other_numbers_are_refused_by_name(text):
    with pytest.raises(UserError, match=r"--identities .*expected a whole number"):
        whole_number("--identities", text)


@pytest.mark.parametrize("head", [{}, {"sample_rate": 0.1, "storage": "host"}, {"dtype": "bfloat16"}])
def test_the_largest_number_of_identities_fits_and_more_do_not(head):
    job = setup(head=HeadConfig(**head))
    most = largest(job)
    assert fits(dataclasses.replace(job, identities=most))
    assert not fits(dataclasses.replace(job, identities=most + 8))  # one more row on a rank


def test_no_identities_fit_where_the_backbone_does_not():
    assert largest(setup(memory_gib=4)) == 0


def test_parts_add_up_to_what_is_said_to_be_used():
    job = setup()
    text = report(job, 10**7, assumed=False)
    used = sum(gpu_memory(job).values()) / GIB
    assert f"memory of a GPU, GiB: {used:.1f} of 32, fits" in text
    rows = text.split("memory of a GPU")[1].split("host memory")[0].splitlines()[1:]
    assert sum(float(row.split()[0]) for row in rows) == pytest.approx(used, abs=0.1)


def test_a_job_that_does_not_fit_is_told_ways_that_do():
    job = setup(identities=80_000_000)
    assert not fits(job)
    lines = list(advice(job))
    assert any(line.startswith("both of these: fits") for line in lines)
    assert any(line.startswith("head.storage=host: fits") and "of host memory" in line for line in lines)
    found = re.search(r"^(\d+) GPUs: fits", "\n".join(lines), re.M)
    assert fits(dataclasses.replace(job, gpus=int(found[1])))
    assert not fits(dataclasses.replace(job, gpus=int(found[1]) // 2))


def test_a_slow_head_is_told_to_sample_and_a_job_in_order_only_what_it_must_decode():
    slow = list(advice(setup(identities=5_000_000, head=HeadConfig(sample_rate=1.0))))
    assert any(line.startswith("head.sample_rate=0.1: ") for line in slow)
    in_order = list(advice(setup()))
    assert len(in_order) == 1
    assert "must decode" in in_order[0]


def test_the_command_prints_the_plan_for_people_and_for_programs():
    call = ("launch", "plan", "--identities", "100e6", "--gpus", 64, "--backbone", "r100", "--sample-rate", 0.1)
    people = headcount_here(*call)
    assert people.returncode == 0, people.stderr
    assert "100,000,000 identities on 64 GPUs, 1,562,500 a rank" in people.stdout
    assert "largest number of identities" in people.stdout
    programs = headcount_here(*call, "--json")
    found = json.loads(programs.stdout)
    assert found["fits"] is True
    assert sum(found["gpu_memory_bytes"].values()) == found["gpu_memory_total_bytes"]
    assert found["gpu_memory_bytes"]["class centers"] == 1_562_500 * 512 * 4
    assert found["hours_per_epoch"] == pytest.approx(100e6 * 20 / found["images_per_s"] / 3600)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--backbone", "r51"], "--backbone r51: input should be 'iresnet18'"),
        (["--storage", "tape"], "--storage tape: input should be 'device', 'host' or 'mmap'"),
        (["--sample-rate", "0"], "--sample-rate 0.0: input should be greater than 0"),
        (["--gpu", "b52"], "--gpu b52: expected one of v100, a100, h100, h200"),
        (["--precision", "fp8"], "--precision fp8: expected one of"),
    ],
)
def test_a_mistake_names_the_option_and_what_is_expected(options, message):
    done = headcount_here("launch", "plan", "--identities", "1e6", *options)
    assert (done.returncode, done.stderr.count(message)) == (2, 1), done.stderr
    assert "Traceback" not in done.stderr
