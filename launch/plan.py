"""The command `headcount launch plan`: memory, traffic and speed of a job, before it is started."""

import dataclasses
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from dist_train.backbones.config import backbone_section
from dist_train.backbones.registry import BACKBONES
from dist_train.errors import UserError
from dist_train.head.config import HeadConfig
from dist_train.runtime.terminal import echo
from launch.plan_advice import advice, other_sizes
from launch.plan_hardware import GIB, GPUS, backbone_cost
from launch.plan_model import Setup, disk_bytes, fits, gpu_memory, host_memory, network_bytes
from launch.plan_seconds import exchange_seconds, images_per_second, step_seconds
from launch.plan_timeline import write_timeline

PICTURES_PER_IDENTITY = 20  # where the number of pictures is not given
MOST_IDENTITIES = 10**12


def plan(
    identities: Annotated[str, typer.Option(help="number of identities, e.g. 100e6")],
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of the job, with a rank for each")] = 8,
    gpu: Annotated[str, typer.Option(help=f"one of {', '.join(GPUS)}")] = "h100",
    gpu_memory_gib: Annotated[
        float | None,
        typer.Option("--gpu-memory", min=1, help="memory of a GPU in GiB; by default that of its data sheet"),
    ] = None,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="GPUs of a machine")] = 8,
    network: Annotated[float, typer.Option(min=0.1, help="network between machines, in Gbit/s for each GPU")] = 200.0,
    backbone: Annotated[str, typer.Option(help="backbone, e.g. r50, r100, mobilefacenet")] = "r50",
    batch: Annotated[int, typer.Option(min=2, help="pictures in one forward pass of a GPU")] = 128,
    accumulation: Annotated[int, typer.Option(min=1, help="forward passes in a step")] = 1,
    sample_rate: Annotated[
        float, typer.Option(help="share of the classes in each step's softmax, as head.sample_rate")
    ] = 1.0,
    storage: Annotated[
        str, typer.Option(help="where class centers are kept, as head.storage: device, host or mmap")
    ] = "device",
    dtype: Annotated[
        str, typer.Option(help="number format of class centers, as head.dtype: float32 or bfloat16")
    ] = "float32",
    optimizer: Annotated[
        str, typer.Option(help="optimizer of class centers, as head.optimizer: sgd, rowwise_adagrad or adamw")
    ] = "sgd",
    logits_budget_mb: Annotated[
        int | None,
        typer.Option(help="memory for kept logits in MB, as head.logits_budget_mb", show_default="2048"),
    ] = None,
    embedding_dim: Annotated[
        int, typer.Option(min=2, max=8192, help="numbers in an embedding, as backbone.embedding_dim")
    ] = 512,
    image_size: Annotated[int, typer.Option(min=32, max=1024, help="side of a picture in pixels")] = 112,
    images: Annotated[str | None, typer.Option(help="pictures of the set; by default 20 for each identity")] = None,
    precision: Annotated[
        str, typer.Option(help="arithmetic of the backbone, as train.precision: auto, bfloat16, float16 or float32")
    ] = "auto",
    arithmetic: Annotated[
        str, typer.Option(help="operands of the head's products: auto, float32, tf32 or bfloat16")
    ] = "auto",
    strategy: Annotated[
        str, typer.Option(help="how ranks hold the backbone, as train.strategy: ddp, zero1, zero2 or zero3")
    ] = "ddp",
    timeline: Annotated[
        Path | None, typer.Option(help="write a page that draws the step as a timeline, e.g. plan.html")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the plan as one JSON object")] = False,
) -> None:
    """Plan a job: memory by part, network, images/s, hours per epoch, the largest number of identities, advice.

    Memory follows from what the code stores, and was compared with measured heads. Seconds are estimates from data
    sheets. `python benchmarks/plan.py` prints how far both are off.

    Examples:

      headcount launch plan --identities 100e6 --gpus 64 --backbone r100 --sample-rate 0.1

      headcount launch plan --identities 100e6 --gpus 256 --gpu b200 --backbone r100 --network 400 --timeline plan.html

      headcount launch plan --identities 29e6 --gpu v100 --sample-rate 0.1 --dtype bfloat16 --optimizer rowwise_adagrad
    """
    classes = whole_number("--identities", identities)
    _one_of("--gpu", gpu, GPUS)
    _one_of("--precision", precision, ("auto", "bfloat16", "float16", "float32"))
    _one_of("--arithmetic", arithmetic, ("auto", "float32", "tf32", "bfloat16"))
    _one_of("--strategy", strategy, ("ddp", "zero1", "zero2", "zero3"))
    for option, number in (("--network", network), ("--gpu-memory", gpu_memory_gib)):
        if number is not None and not math.isfinite(number):
            raise UserError(f"{option} {number}: expected a finite number")
    _check_backbone(gpu, gpus, strategy, precision)
    try:
        names = {spec.short_name: name for name, spec in BACKBONES.items()}
        section = backbone_section({"name": names.get(backbone, backbone), "embedding_dim": embedding_dim})
        cost = backbone_cost(section, image_size)
        head = HeadConfig.model_validate(
            {
                "sample_rate": sample_rate,
                "storage": storage,
                "storage_dir": Path("rows") if storage == "mmap" else None,
                "dtype": dtype,
                "optimizer": optimizer,
                "logits_budget_mb": logits_budget_mb,
                "arithmetic": arithmetic,
            }
        )
    except ValidationError as error:
        first = error.errors()[0]
        name = {"name": "backbone"}.get(str(first["loc"][0]), str(first["loc"][0]))
        raise UserError(f"--{name.replace('_', '-')} {first['input']}: {first['msg'].lower()}") from error
    setup = Setup(
        identities=classes,
        gpus=gpus,
        gpus_per_node=gpus_per_node,
        gpu=GPUS[gpu],
        memory_gib=gpu_memory_gib or GPUS[gpu].memory_gib,
        network_gb_s=network / 8,
        backbone=cost,
        embedding_dim=embedding_dim,
        image_size=image_size,
        batch=batch,
        accumulation=accumulation,
        half=GPUS[gpu].in_half(precision),
        strategy=strategy,
        moments=1,
        head=head,
    )
    try:
        GPUS[gpu].tflops(setup.operands)
    except ValueError as error:
        raise UserError(f"--arithmetic {arithmetic} --gpu {gpu}: {error}") from error
    pictures = whole_number("--images", images) if images else classes * PICTURES_PER_IDENTITY
    if timeline is not None:
        write_timeline(timeline, setup, report(setup, pictures, assumed=images is None))
    echo(json.dumps(figures(setup, pictures)) if as_json else report(setup, pictures, assumed=images is None))


def whole_number(option: str, text: str) -> int:
    """The whole number in a text such as `100e6` or `1000`.

    Raises:
        UserError: the text is no whole number of at least 1.
    """
    try:
        value = float(text.replace("_", "").replace(",", ""))
    except ValueError:
        value = math.nan
    if not (1 <= value <= MOST_IDENTITIES and value == int(value)):
        raise UserError(f"{option} {text}: expected a whole number from 1 to {MOST_IDENTITIES:.0e}, e.g. 100e6")
    return int(value)


def largest(setup: Setup) -> int:
    """The largest number of identities that fits into the GPUs, with all else as in the setup; 0 if none does."""
    low, high = 0, MOST_IDENTITIES
    while low < high:
        middle = (low + high + 1) // 2
        if fits(dataclasses.replace(setup, identities=middle)):
            low = middle
        else:
            high = middle - 1
    return low


def figures(setup: Setup, pictures: int) -> dict[str, Any]:
    """All figures of a plan as JSON values; bytes are of one rank, seconds of one step."""
    rate, memory = images_per_second(setup), gpu_memory(setup)
    return {
        "fits": fits(setup),
        "gpu_memory_bytes": memory,
        "gpu_memory_total_bytes": sum(memory.values()),
        "gpu_memory_available_bytes": round(setup.memory_gib * GIB),
        "host_memory_bytes": host_memory(setup),
        "disk_bytes": disk_bytes(setup),
        "network_bytes": network_bytes(setup),
        "step_seconds": step_seconds(setup),
        "images_per_s": rate,
        "hours_per_epoch": pictures / rate / 3600,
        "largest_identities": largest(setup),
        "advice": list(advice(setup)),
        "other_sizes": list(other_sizes(setup)),
    }


def report(setup: Setup, pictures: int, assumed: bool) -> str:
    """The text of a plan, for people.

    Args:
        setup: the job.
        pictures: number of pictures in the set.
        assumed: whether that number is a guess, because none was given.
    """
    memory, seconds, rate = gpu_memory(setup), step_seconds(setup), images_per_second(setup)
    network, host = network_bytes(setup), host_memory(setup)
    used, step = sum(memory.values()) / GIB, math.fsum(seconds.values())
    verdict = "fits" if fits(setup) else f"DOES NOT FIT: {used - setup.memory_gib:.1f} GiB too much"
    per_node = min(setup.gpus, setup.gpus_per_node)
    epoch = f"{pictures / rate / 3600:,.1f} hours for an epoch of {pictures:,} pictures"
    return "\n".join(
        [
            f"{setup.identities:,} identities on {setup.gpus} GPUs, {setup.rows:,} a rank; "
            f"{setup.samples * setup.accumulation:,} pictures a step",
            "",
            f"memory of a GPU, GiB: {used:.1f} of {setup.memory_gib:g}, {verdict}",
            *_lines(memory, GIB, "{:10.2f}"),
            f"host memory of a machine, GiB: {per_node * sum(host.values()) / GIB:,.0f}",
            *_lines({name: per_node * value for name, value in host.items()}, GIB, "{:10.1f}"),
            *([f"disk of a machine, GiB: {per_node * disk_bytes(setup) / GIB:,.0f}"] if disk_bytes(setup) else []),
            f"network, MB received by a rank in a step: {sum(network.values()) / 1e6:,.1f}",
            *_lines(network, 1e6, "{:10.1f}"),
            *_levels(setup),
            f"time of a step, ms (an estimate): {step * 1e3:,.1f}",
            *_lines({name: value for name, value in seconds.items() if value}, 1e-3, "{:10.1f}"),
            "",
            f"{rate:,.0f} images/s; {epoch}" + (f" ({PICTURES_PER_IDENTITY} an identity, assumed)" if assumed else ""),
            f"largest number of identities with these settings: {largest(setup):,}",
            *(f"- {line}" for line in advice(setup)),
            "on other numbers of GPUs, with as many pictures a GPU:",
            *(f"- {line}" for line in other_sizes(setup)),
        ]
    )


def _levels(setup: Setup) -> list[str]:
    """What the exchanges of a step take on each level of the network, hidden or not."""
    levels = exchange_seconds(setup, sum(network_bytes(setup).values()))
    named = {"within": f"within a machine, by {setup.gpu.link}", "between": "between machines"}
    taken = {named[level]: seconds for level, seconds in levels.items() if seconds}
    lines = _lines(taken, 1e-3, "{:10.1f}")
    return ["time of these exchanges, ms, a part of it under other work:", *lines] if taken else []


def _lines(parts: dict[str, Any], unit: float, form: str) -> list[str]:
    return [f"{form.format(value / unit)}  {name}" for name, value in parts.items()]


def _check_backbone(gpu: str, gpus: int, strategy: str, precision: str) -> None:
    """Raise UserError where a run refuses what is planned, or its speed is that of an emulation."""
    if strategy != "ddp" and gpus == 1:
        raise UserError(f"--strategy {strategy} --gpus 1: splits over GPUs, but there is one; use ddp")
    if strategy != "ddp" and precision == "float16":
        raise UserError(f"--strategy {strategy} --precision float16: float16 goes with ddp only; use bfloat16 or ddp")
    if precision == "bfloat16" and not GPUS[gpu].bfloat16:
        raise UserError(f"--precision bfloat16 --gpu {gpu}: this GPU has no bfloat16; expected auto, float16, float32")


def _one_of(option: str, text: str, known: Iterable[str]) -> None:
    if text not in known:
        raise UserError(f"{option} {text}: expected one of {', '.join(known)}")
