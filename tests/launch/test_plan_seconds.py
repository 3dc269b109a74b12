"""Seconds of a planned step, its timeline and its advice."""

import dataclasses
import math
import re
from itertools import pairwise

import pytest

from dist_train.head import HeadConfig
from launch.plan_advice import advice, other_sizes
from launch.plan_hardware import GPUS
from launch.plan_model import HeadShape, head_flops, head_shape, kernel_traffic
from launch.plan_seconds import (
    exchange_seconds,
    head_seconds,
    images_per_second,
    row_seconds,
    step_seconds,
    work_seconds,
)
from launch.plan_timeline import LANES, spans, write_timeline
from tests.launch.recipes import headcount_here
from tests.launch.test_plan_model import setup


def large(**changes):
    return setup(
        **{"identities": 10**8, "gpus": 64, "gpu": GPUS["h100"], "memory_gib": 80, "network_gb_s": 25} | changes
    )


JOBS = {
    "one GPU": setup(gpus=1),
    "one machine": setup(),
    "eight machines": large(),
    "a slow network": large(network_gb_s=0.1),
    "ZeRO 1": large(strategy="zero1"),
    "ZeRO 3": large(strategy="zero3"),
    "three passes": large(accumulation=3),
    "nine passes, rows on the host": large(accumulation=9, head=HeadConfig(sample_rate=0.1, storage="host")),
    "one pass, rows on the host": large(head=HeadConfig(sample_rate=0.1, storage="host")),
}


def test_kernels_form_weights_of_16_bits_and_move_rows():
    shape = HeadShape(HeadConfig(sample_rate=0.5), rows=1000, dim=64, samples=256, operands="bfloat16")
    assert head_flops(shape) == 3 * 2 * 500 * 64 * 256
    assert shape.logits_bytes == 2 * 500 * 256
    # Rows gathered 4 + 4, their norms 4, operands 4 + 2 + 2 x 2; gradient 2 x 4; row and momentum 2 x 8.
    assert kernel_traffic(shape) == 500 * 64 * (8 + 4 + 10 + 8 + 16)
    twice = dataclasses.replace(shape, samples=512)
    assert kernel_traffic(twice) == kernel_traffic(shape)
    short = dataclasses.replace(shape, config=HeadConfig(sample_rate=0.5, logits_budget_mb=1), samples=4096)
    assert head_flops(short) == 4 * 2 * 500 * 64 * 4096
    assert kernel_traffic(short) > kernel_traffic(shape)


def test_a_head_takes_the_rate_of_its_arithmetic_and_a_gpu_without_it_is_refused():
    h100 = GPUS["h100"]
    seconds = []
    for kind in ("float32", "tf32", "bfloat16"):
        shape = head_shape(large(head=HeadConfig(sample_rate=0.1, arithmetic=kind)))
        seconds.append(math.fsum(head_seconds(shape, h100, kind).values()))
    assert seconds == sorted(seconds, reverse=True)
    assert seconds[2] < 0.03 < seconds[0]
    with pytest.raises(ValueError, match="this GPU has no bfloat16; expected float32"):
        head_seconds(shape, GPUS["v100"], "bfloat16")
    assert large(gpu=GPUS["v100"]).operands == "float32"


@pytest.mark.parametrize("gpu", GPUS)
def test_figures_of_every_gpu_are_in_order(gpu):
    found = GPUS[gpu]
    assert found.float32_tflops < (found.tf32_tflops or found.half_tflops) <= found.half_tflops
    assert 16 < found.memory_gib < 1000
    assert found.link_gb_s < found.memory_gb_s


def test_machines_share_their_adapters_and_one_machine_has_no_border():
    assert exchange_seconds(setup(), 10**9)["between"] == 0
    levels = exchange_seconds(large(), 10**9)
    assert levels["between"] / levels["within"] == pytest.approx(450 / (8 * 25))
    assert exchange_seconds(large(gpus_per_node=1), 10**9)["within"] == 0


@pytest.mark.parametrize("name", JOBS)
def test_a_timeline_is_as_long_as_the_step_and_nothing_on_the_gpu_overlaps(name):
    job = JOBS[name]
    work = spans(job)
    assert max(each.start + each.seconds for each in work) == pytest.approx(math.fsum(step_seconds(job).values()))
    assert {each.lane for each in work} <= set(LANES)
    computed = sorted((each for each in work if each.lane in LANES[:2]), key=lambda each: each.start)
    for before, after in pairwise(computed):
        assert after.start >= before.start + before.seconds - 1e-12


@pytest.mark.parametrize("gpus", [64, 512, 2048])
@pytest.mark.parametrize("passes", [1, 2, 5])
def test_a_gpu_waits_for_rows_while_the_one_thread_that_moves_them_is_behind(passes, gpus):
    job = large(gpus=gpus, accumulation=passes, head=HeadConfig(sample_rate=0.1, storage="host"))
    shape, work = head_shape(job), work_seconds(job)
    rest = (work["head, products"] + work["head, rows and logits"]) / passes + work["backward"]
    a_row = row_seconds(shape)
    thread, gpu, waited = a_row * shape.updated, 0.0, 0.0  # the step before is written back first

    def wait():
        nonlocal gpu, waited
        waited += max(0.0, thread - gpu)
        gpu = max(gpu, thread)

    for _ in range(passes):
        thread += a_row * shape.chosen
        gpu += work["forward"]
        wait()
        gpu += rest
    if passes > 1:
        thread += a_row * shape.updated
        wait()
    assert thread == pytest.approx(work["rows moved"])
    assert step_seconds(job)["rows from host or disk"] == pytest.approx(waited)
    assert (waited > 0) == (gpus < 2048), "one that hides all, and others that do not"
    if passes == 1 and waited:
        assert waited == pytest.approx(work["rows moved"] - work["forward"])


def test_advice_gives_what_gains_most_first_and_what_it_says_is_planned():
    job = large(head=HeadConfig(sample_rate=1.0), batch=64)
    gains = [re.search(r"^(.*): ([\d,]+) images/s \(\+(\d+)%\)", line) for line in advice(job)]
    rates = [int(found[2].replace(",", "")) for found in gains if found]
    assert len(rates) >= 3
    assert rates == sorted(rates, reverse=True)
    sampled = dataclasses.replace(job, head=HeadConfig(sample_rate=0.1))
    assert any(f"head.sample_rate=0.1: {images_per_second(sampled):,.0f}" in line for line in advice(job))
    assert [line.split(" ")[0] for line in other_sizes(job)] == ["32", "128", "256"]


def test_weights_that_others_have_updated_are_waited_for_and_those_of_stage_3_come_under_the_backbone():
    plain, split, whole = (
        step_seconds(large(strategy=name))["exchange of gradients"] for name in ("ddp", "zero1", "zero3")
    )
    assert plain == whole == 0
    assert split > 0


def test_the_page_of_a_timeline_names_all_work_and_holds_no_script(tmp_path):
    page = tmp_path / "plan.html"
    write_timeline(page, large(), "a <plan> & more")
    text = page.read_text(encoding="utf-8")
    assert all(each.name in text for each in spans(large()))
    assert "a &lt;plan&gt; &amp; more" in text
    assert "<script" not in text
    assert "default-src 'none'" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--timeline", "/nowhere/at/all/plan.html"], "--timeline /nowhere/at/all/plan.html: cannot be written"),
        (["--gpu", "v100", "--arithmetic", "bfloat16"], "--arithmetic bfloat16 --gpu v100: this GPU has no bfloat16"),
        (["--arithmetic", "int8"], "--arithmetic int8: expected one of auto, float32, tf32, bfloat16"),
    ],
)
def test_mistakes_name_the_option(options, message):
    done = headcount_here("launch", "plan", "--identities", "1e6", "--backbone", "mobilefacenet", *options)
    assert (done.returncode, done.stderr.count(message)) == (2, 1), done.stderr
