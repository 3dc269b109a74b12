import dataclasses
import functools
import json
import math
import re
from pathlib import Path

import pytest

from dist_train.backbones import BackboneConfig
from dist_train.config import RunConfig
from dist_train.errors import UserError
from dist_train.head import HeadConfig
from launch.check import _about_memory
from launch.plan import largest, report, whole_number
from launch.plan_advice import advice
from launch.plan_hardware import GIB, GPUS, backbone_cost
from launch.plan_head import HeadShape, head_memory
from launch.plan_model import fits, gpu_memory
from launch.plan_seconds import head_seconds, images_per_second, step_seconds, work_seconds
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


ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/scale.md").read_text(encoding="utf-8")


@functools.cache
def r100():
    return backbone_cost(BackboneConfig(name="iresnet100"), 112)


def of_page(gpus=64, gpu="h100", network=200, **head):
    """A job of the page: 100 million identities and R100 by the command's defaults, rate 0.1."""
    settings = {"identities": 10**8, "gpus": gpus, "gpu": GPUS[gpu], "memory_gib": GPUS[gpu].memory_gib}
    head = HeadConfig(**{"sample_rate": 0.1} | head)
    return setup(**settings, network_gb_s=network / 8, backbone=r100(), head=head)


def speed(job):
    return f"{images_per_second(job):,.0f}"


def test_the_tables_of_the_page_about_scale_are_what_is_planned():
    for gpus in (8, 16, 32, 64, 128, 256, 512):
        used = sum(gpu_memory(of_page(gpus)).values()) / GIB
        planned = [speed(of_page(gpus, gpu)) for gpu in ("h100", "h200", "b200", "mi300x")]
        assert f"| {gpus} | {128 * gpus:,} | {used:.1f} | {' | '.join(planned)} |\n" in PAGE
    for rate in (1, 0.3, 0.1):
        assert f"| {rate} | {speed(of_page(8, sample_rate=rate))} |\n" in PAGE
    lean = {"dtype": "bfloat16", "optimizer": "rowwise_adagrad"}
    for name, rows in (("float32, SGD", {}), ("bfloat16, row-wise AdaGrad", lean)):
        job = of_page(8, **rows)
        used = sum(gpu_memory(job).values()) / GIB
        assert f"| {name} | {used:.0f} GiB | {largest(job) / 1e6:.0f} million |\n" in PAGE


def test_the_figures_in_the_text_of_the_page_about_scale_are_what_is_planned():
    plain, few, many = of_page(), of_page(8), of_page(512)
    parts = {name: 1e3 * seconds for name, seconds in step_seconds(plain).items()}
    products, rows = parts["head, products"], parts["head, rows and logits"]
    kept = gpu_memory(few)
    centers = (kept["class centers"] + kept["centers' optimizer state"]) / GIB
    fast = step_seconds(of_page(8, "b200"))
    others = 1e3 * (math.fsum(fast.values()) - fast["draw of classes"])
    exchanges = [1e3 * step_seconds(job)["exchange of embeddings"] for job in (plain, many, of_page(512, network=25))]
    lifted = step_seconds(of_page(margin="curricularface"))["head, products"]
    host, disk = (of_page(8, storage=storage, storage_dir="rows") for storage in ("host", "mmap"))
    text = " ".join(PAGE.split())
    for said in (
        f"It takes {parts['backbone']:.1f} of {math.fsum(parts.values()):.1f} ms on 64 GPUs; the head takes "
        f"{products + rows:.1f}, of which {products:.1f} are its products",
        f"{centers:.0f} of {sum(kept.values()) / GIB:.1f} GiB are rows and their momentum",
        f"no more than {largest(few) / 1e6:.0f} million identities fit",
        f"on 8 GPUs in {1e3 * work_seconds(few)['classes drawn']:.1f} ms",
        f"whose other work takes {others:.1f} ms",
        f"{exchanges[0]:.1f} ms on 64 GPUs, {exchanges[1]:.1f} on 512",
        f"makes the exchange {exchanges[2]:.1f} ms",
        f"{1e3 * lifted - products:.1f} ms on 64 H100",
        f"64 GPUs make {speed(of_page(arithmetic='float32'))} images/s at rate 0.1 instead of {speed(plain)}",
        f"gives {speed(host)} images/s from the host and {speed(disk)} from disk, against {speed(few)} from the GPU",
    ):
        assert said in text
    assert fast["draw of classes"] > 0 == step_seconds(few)["draw of classes"]
    assert step_seconds(of_page(8, sample_rate=0.3))["draw of classes"] > 0


def test_what_the_page_says_of_measured_heads_is_what_the_stored_lines_and_the_plan_make_of_them():
    times, memory = {}, {}
    for line in map(json.loads, (ROOT / "benchmarks/gpu_h100.jsonl").read_text(encoding="utf-8").splitlines()):
        found = re.fullmatch(r"(\d+) M (\w+), products bfloat16, rate ([\d.]+), G (\d+)", line["case"])
        if found is not None:
            millions, dtype, rate, samples = int(found[1]), found[2], float(found[3]), int(found[4])
            config = HeadConfig(dtype=dtype, sample_rate=rate)
            shape = HeadShape(config, 10**6 * millions, 512, samples, operands="bfloat16")
            planned_ms = 1e3 * math.fsum(head_seconds(shape, GPUS["h100"], "bfloat16").values())
            times[millions, rate, samples] = line["ms"], planned_ms
            memory[millions, rate, samples] = line["peak_gb"], sum(head_memory(shape).values()) / 1e9
    more = {key: 100 * (measured / planned - 1) for key, (measured, planned) in times.items()}
    large = [value for (millions, _, _), value in more.items() if millions > 1]
    heavier = {key: 100 * (measured / planned - 1) for key, (measured, planned) in memory.items()}
    few = [value for (_, _, samples), value in heavier.items() if samples == 1024]
    slow, fast = times[1, 0.1, 8192], times[1, 0.1, 1024]
    for said in (
        f"10 and 30 million identities: {-min(large):.0f} % less to {max(large):.0f} % more than planned",
        f"{more[1, 1, 8192]:.0f} and {more[1, 1, 1024]:.0f} % more ({times[1, 1, 8192][0]:.1f} ms with 8,192 pictures, "
        f"planned {times[1, 1, 8192][1]:.1f})",
        f"{slow[0]:.1f} ms with 8,192 pictures (planned {slow[1]:.1f}), {fast[0]:.1f} with 1,024 ({fast[1]:.1f})",
        f"{min(few):.0f} to {max(few):.0f} % more with 1,024 pictures",
        f"up to {max(heavier.values()):.0f} % with 8,192 ({memory[1, 1, 8192][0]:.1f} GB, planned "
        f"{memory[1, 1, 8192][1]:.1f})",
    ):
        assert said in PAGE


def test_what_the_page_says_of_published_figures_is_what_is_stored():
    stored = map(json.loads, (ROOT / "benchmarks/results.jsonl").read_text(encoding="utf-8").splitlines())
    found = [line for line in stored if (line["benchmark"], line["case"]) == ("plan", "published")]
    farthest = max(found, key=lambda line: line["off_percent"])
    assert f"by {farthest['off_percent']:.0f} % at {farthest['run']['identities'] / 1e6:.0f} million" in PAGE
    off: dict[float, list[float]] = {0.1: [], 1.0: []}
    for line in found:
        off[line["run"]["sample_rate"]].append(line["ordinary_head_off_percent"])
    low, high = ((min(values), max(values)) for values in off.values())
    assert f"{low[0]:.0f} to +{low[1]:.0f} % at rate 0.1, {high[0]:.0f} to +{high[1]:.0f} % at rate 1" in PAGE
    for line in found:
        head = HeadConfig(sample_rate=line["run"]["sample_rate"])
        planned = images_per_second(setup(identities=line["run"]["identities"], head=head))
        assert planned == pytest.approx(line["ours"], abs=0.1), "run `python benchmarks/plan.py`, and store its lines"


def test_the_backbone_computes_in_what_a_run_would_take_by_itself_on_the_gpu():
    """`train.precision=auto` is float32 on a GPU without bfloat16."""
    seconds = {}
    for gpu, precision in (("v100", "auto"), ("v100", "float32"), ("v100", "float16"), ("a100", "auto")):
        call = ("launch", "plan", "--identities", "1e6", "--backbone", "mobilefacenet", "--json")
        done = headcount_here(*call, "--gpu", gpu, *(() if precision == "auto" else ("--precision", precision)))
        seconds[gpu, precision] = json.loads(done.stdout)["step_seconds"]["backbone"]
    assert seconds["v100", "auto"] == seconds["v100", "float32"] > seconds["v100", "float16"]
    assert seconds["a100", "auto"] < seconds["v100", "float16"]


def test_a_check_of_a_recipe_plans_each_gpu_with_what_auto_is_there():
    lines = {}
    for precision in ("auto", "float32", "bfloat16"):
        train = {"steps": 10, "precision": precision}
        tree = {"run_dir": "r", "data": {"path": "d"}, "backbone": {"name": "mobilefacenet"}, "train": train}
        said = _about_memory(RunConfig.model_validate(tree), 1000, {0: 112})
        lines[precision] = {line.split(",")[0].strip(): line for line in said}
    assert lines["auto"]["v100"] == lines["float32"]["v100"] != lines["bfloat16"]["v100"]
    assert lines["auto"]["a100"] == lines["bfloat16"]["a100"] != lines["float32"]["a100"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--backbone", "r51"], "--backbone r51: input should be 'iresnet18'"),
        (["--storage", "tape"], "--storage tape: input should be 'device', 'host' or 'mmap'"),
        (["--sample-rate", "0"], "--sample-rate 0.0: input should be greater than 0"),
        (["--gpu", "b52"], "--gpu b52: expected one of v100, a100, h100, h200"),
        (["--precision", "fp8"], "--precision fp8: expected one of auto, bfloat16, float16, float32"),
        (["--precision", "bfloat16", "--gpu", "v100"], "--precision bfloat16 --gpu v100: this GPU has no bfloat16"),
        (["--strategy", "zero3", "--gpus", "1"], "--strategy zero3 --gpus 1: splits over GPUs, but there is one"),
        (["--strategy", "zero1", "--precision", "float16"], "--precision float16: float16 goes with ddp only"),
        (["--network", "inf"], "--network inf: expected a finite number"),
        (["--gpu-memory", "inf"], "--gpu-memory inf: expected a finite number"),
    ],
)
def test_a_mistake_names_the_option_and_what_is_expected(options, message):
    done = headcount_here("launch", "plan", "--identities", "1e6", *options)
    assert (done.returncode, done.stderr.count(message)) == (2, 1), done.stderr
    assert "Traceback" not in done.stderr
