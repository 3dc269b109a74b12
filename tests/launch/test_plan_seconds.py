"""Seconds of a planned step, its timeline and its advice."""

import dataclasses
import itertools
import json
import math
import re
from itertools import pairwise
from pathlib import Path

import pytest

from dist_train.head import HeadConfig
from launch.plan_advice import advice, other_sizes
from launch.plan_hardware import GPUS
from launch.plan_head import HeadShape, head_flops, kernel_traffic
from launch.plan_model import head_shape
from launch.plan_seconds import (
    BANDWIDTH_SHARE,
    DRAW_S,
    KERNEL_FLOPS_SHARE,
    LIBRARY_FLOPS_SHARE,
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
    "a draw longer than the rest": large(gpus=8, accumulation=3, batch=16),
}


def stored_lines():
    """What one H100 gave."""
    path = Path(__file__).parents[2] / "benchmarks/gpu_h100.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_kernels_form_weights_of_16_bits_and_move_rows():
    shape = HeadShape(HeadConfig(sample_rate=0.5), rows=1000, dim=64, samples=256, operands="bfloat16")
    assert head_flops(shape) == 3 * 2 * 500 * 64 * 256
    assert shape.logits_bytes == 2 * 500 * 256
    # Rows gathered 4 + 4, their norms 4, operands 4 + 2 + 2 x 2; gradient 2 x 4; row and momentum 2 x 8.
    assert kernel_traffic(shape) == 500 * 64 * (8 + 4 + 10 + 8 + 16)
    short = dataclasses.replace(shape, config=HeadConfig(sample_rate=0.5, logits_budget_mb=1), samples=4096)
    assert head_flops(short) == 4 * 2 * 500 * 64 * 4096
    assert kernel_traffic(short) > kernel_traffic(shape)


def test_products_of_narrow_centers_take_as_long_as_the_weights_that_they_write_and_read():
    h100, seconds = GPUS["h100"], {}
    for dim in (128, 512):
        shape = HeadShape(HeadConfig(sample_rate=0.1), 1_562_500, dim, samples=8192, operands="bfloat16")
        assert shape.passes_kept == 0
        seconds[dim] = head_seconds(shape, h100, "bfloat16")["head, products"]
    weights = 2 * 156_250 * 8192 / (BANDWIDTH_SHARE * 3350e9)  # a product's, written once or read once
    assert seconds[128] == pytest.approx(4 * weights)
    flops = 2 * 156_250 * 512 * 8192
    assert seconds[512] == pytest.approx(2 * flops * (1 / KERNEL_FLOPS_SHARE + 1 / LIBRARY_FLOPS_SHARE) / 989e12)
    assert seconds[512] / seconds[128] < 3, "in place of 4"


def test_rates_of_the_heads_products_are_those_of_the_stored_profile():
    (line,) = (each for each in stored_lines() if each["case"] == "head, 1.56 M, rate 0.1, G 8192")
    shape = HeadShape(HeadConfig(sample_rate=0.1, logits_budget_mb=4096), 1_562_500, 512, 8192, operands="bfloat16")
    kernel, library = line["ms_a_step"]["weights_kernel"], line["ms_a_step"]["aten::mm"]
    found = head_seconds(shape, GPUS["h100"], "bfloat16")
    assert found["head, products"] == pytest.approx(1e-3 * (kernel + library), rel=0.01)
    assert math.fsum(found.values()) == pytest.approx(1e-3 * line["device_ms"], rel=0.1)
    once = dataclasses.replace(shape, config=HeadConfig(sample_rate=0.1, logits_budget_mb=2048))
    twice = head_seconds(once, GPUS["h100"], "bfloat16")["head, products"]
    assert twice == pytest.approx(1e-3 * (2 * kernel + library), rel=0.01)


def test_a_margin_whose_logits_may_leave_a_float32_forms_them_once_more():
    plain, lifted, tf32 = (
        head_shape(large(head=HeadConfig(sample_rate=0.1, logits_budget_mb=4096, **settings)))
        for settings in ({}, {"margin": "curricularface"}, {"margin": "curricularface", "arithmetic": "tf32"})
    )
    assert 3 * head_flops(lifted) == 4 * head_flops(plain)
    products = [head_seconds(shape, GPUS["h100"], "bfloat16")["head, products"] for shape in (plain, lifted)]
    assert products[1] - products[0] == pytest.approx(head_flops(plain) / 3 / (KERNEL_FLOPS_SHARE * 989e12))
    assert not tf32.kernels
    assert head_flops(tf32) == 4 * 2 * 156_250 * 512 * 8192, "no kernel, and 4 bytes a logit do not fit"


def test_a_step_is_no_shorter_than_the_hosts_draw_of_its_classes():
    hidden, bound, every = large(), large(gpus=8, batch=16), large(gpus=8, head=HeadConfig())
    assert step_seconds(hidden)["draw of classes"] == 0 < work_seconds(hidden)["classes drawn"]
    assert math.fsum(step_seconds(bound).values()) == pytest.approx(1_250_000 * DRAW_S)
    assert work_seconds(every)["classes drawn"] == 0, "a head that takes all draws none"
    most = large(gpus=8, head=HeadConfig(sample_rate=0.9))
    assert work_seconds(most)["classes drawn"] == pytest.approx(1_250_000 * DRAW_S), "it draws those that stay out"


def test_the_time_of_a_draw_is_that_of_the_stored_lines():
    large_draws = [
        1e-3 * line["choice_ms"] / (0.1 * 1e6 * float(line["case"].split(" M")[0]))
        for line in stored_lines()
        if line["part"] == "head" and "rate 0.1" in line["case"] and line["case"].startswith(("10 M", "30 M"))
    ]
    assert len(large_draws) == 4
    assert pytest.approx(sum(large_draws) / 4, rel=0.01) == DRAW_S


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


def test_sixteen_bits_are_advised_where_a_run_takes_them():
    """By the kind that the GPU has; float16 goes with ddp only."""
    found = {}
    for gpu, strategy in itertools.product(("v100", "a100"), ("ddp", "zero1")):
        lines = advice(setup(gpu=GPUS[gpu], half=False, strategy=strategy))
        found[gpu, strategy] = [line.partition(":")[0] for line in lines if line.startswith("train.precision")]
    of_a100 = ["train.precision=bfloat16"]
    assert list(found.values()) == [["train.precision=float16"], [], of_a100, of_a100]


def test_one_gpu_is_no_other_size_of_a_job_that_splits_over_gpus():
    first = [next(other_sizes(setup(gpus=2, strategy=strategy))) for strategy in ("ddp", "zero2")]
    assert [line.partition(":")[0] for line in first] == ["1 GPU", "4 GPUs"]


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
