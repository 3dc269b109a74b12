"""The command `headcount launch plan`: memory, traffic and speed of a job, before it is started."""

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from dist_train.backbones.config import backbone_section
from dist_train.backbones.registry import BACKBONES
from dist_train.errors import UserError
from dist_train.head.config import HeadConfig
from dist_train.runtime.terminal import echo
from launch.plan_hardware import GIB, GPUS, backbone_cost
from launch.plan_model import (
    Setup,
    disk_bytes,
    fits,
    gpu_memory,
    host_memory,
    images_per_second,
    network_bytes,
    step_seconds,
)

PICTURES_PER_IDENTITY = 20  # where the number of pictures is not given
DECODED_PER_CORE = 3000  # images/s of 112 x 112 pixels by OpenCV on one core, decoding and augmentation
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
    logits_budget_mb: Annotated[int, typer.Option(help="memory for kept logits in MB, as head.logits_budget_mb")] = 256,
    embedding_dim: Annotated[
        int, typer.Option(min=2, max=8192, help="numbers in an embedding, as backbone.embedding_dim")
    ] = 512,
    image_size: Annotated[int, typer.Option(min=32, max=1024, help="side of a picture in pixels")] = 112,
    images: Annotated[str | None, typer.Option(help="pictures of the set; by default 20 for each identity")] = None,
    precision: Annotated[
        str, typer.Option(help="arithmetic of the backbone, as train.precision: bfloat16, float16 or float32")
    ] = "bfloat16",
    strategy: Annotated[
        str, typer.Option(help="how ranks hold the backbone, as train.strategy: ddp, zero1, zero2 or zero3")
    ] = "ddp",
    as_json: Annotated[bool, typer.Option("--json", help="print the plan as one JSON object")] = False,
) -> None:
    """Plan a job: memory by part, network, images/s, hours per epoch, the largest number of identities, advice.

    Memory follows from what the code stores, and was compared with measured heads. Seconds are estimates from data
    sheets. `python benchmarks/plan.py` prints how far both are off.

    Examples:

      headcount launch plan --identities 100e6 --gpus 64 --backbone r100 --sample-rate 0.1

      headcount launch plan --identities 29e6 --gpu v100 --sample-rate 0.1 --dtype bfloat16 --optimizer rowwise_adagrad
    """
    classes = whole_number("--identities", identities)
    _one_of("--gpu", gpu, GPUS)
    _one_of("--precision", precision, ("bfloat16", "float16", "float32"))
    _one_of("--strategy", strategy, ("ddp", "zero1", "zero2", "zero3"))
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
        half=precision != "float32",
        strategy=strategy,
        moments=1,
        head=head,
    )
    pictures = whole_number("--images", images) if images else classes * PICTURES_PER_IDENTITY
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
            f"time of a step, ms (an estimate): {step * 1e3:,.1f}",
            *_lines({name: value for name, value in seconds.items() if value}, 1e-3, "{:10.1f}"),
            "",
            f"{rate:,.0f} images/s; {epoch}" + (f" ({PICTURES_PER_IDENTITY} an identity, assumed)" if assumed else ""),
            f"largest number of identities with these settings: {largest(setup):,}",
            *(f"- {line}" for line in advice(setup)),
        ]
    )


def advice(setup: Setup) -> Iterator[str]:
    """Advice: changes of the setup, each with its gain."""
    if not fits(setup):
        yield from _ways_to_fit(setup)
        return
    rate, seconds = images_per_second(setup), step_seconds(setup)
    for text, other in _ways_to_speed(setup):
        gain = images_per_second(other) / rate - 1
        if gain > 0.05 and fits(other):
            yield f"{text}: {images_per_second(other):,.0f} images/s (+{gain:.0%})"
    exchange = seconds["exchange of embeddings"] + seconds["exchange of gradients"]
    if exchange > 0.15 * math.fsum(seconds.values()):
        yield f"exchanges take {exchange / math.fsum(seconds.values()):.0%} of a step; a faster network pays"
    per_node = rate / setup.gpus * min(setup.gpus, setup.gpus_per_node)
    cores = math.ceil(per_node / DECODED_PER_CORE)
    yield (
        f"a machine must decode {per_node:,.0f} images/s: {cores} core{'s' if cores > 1 else ''} for "
        "data.workers with data.backend=opencv, or data.backend=dali on the GPUs"
    )


def _ways_to_fit(setup: Setup) -> Iterator[str]:
    ways = list(_ways_to_save(setup))
    fitting = [(text, other) for text, other in ways if fits(other)]
    for text, other in fitting:
        host = sum(host_memory(other).values()) * min(setup.gpus, setup.gpus_per_node) / GIB
        more = f", {host:,.0f} GiB of host memory a machine" if other.head.storage == "host" else ""
        yield f"{text}: fits, {images_per_second(other):,.0f} images/s{more}"
    if not fitting:
        yield "no single change of sampling, storage or batch makes it fit"
    gpus = setup.gpus
    while gpus < setup.gpus * 1024:
        gpus *= 2
        other = dataclasses.replace(setup, gpus=gpus)
        if fits(other):
            yield f"{gpus} GPUs: fits, {images_per_second(other):,.0f} images/s"
            return


def _ways_to_save(setup: Setup) -> Iterator[tuple[str, Setup]]:
    head = setup.head
    lean: dict[str, Any] = {}
    if head.dtype == "float32":
        lean["dtype"] = "bfloat16"
        yield "head.dtype=bfloat16", _with_head(setup, dtype="bfloat16")
    if head.optimizer != "rowwise_adagrad":
        lean["optimizer"] = "rowwise_adagrad"
        yield "head.optimizer=rowwise_adagrad", _with_head(setup, optimizer="rowwise_adagrad")
    if len(lean) > 1:
        yield "both of these", _with_head(setup, **lean)
    if head.storage == "device":
        sampled = min(head.sample_rate, 0.1)
        text = "head.storage=host" if sampled == head.sample_rate else f"head.storage=host head.sample_rate={sampled}"
        yield text, _with_head(setup, storage="host", sample_rate=sampled)
    if setup.batch >= 4:
        half = dataclasses.replace(setup, batch=setup.batch // 2, accumulation=2 * setup.accumulation)
        yield f"batches of {half.batch} pictures and {half.accumulation} forward passes a step", half


def _ways_to_speed(setup: Setup) -> Iterator[tuple[str, Setup]]:
    head = setup.head
    for rate in (0.3, 0.1):
        if head.sample_rate > rate:
            yield f"head.sample_rate={rate:g}", _with_head(setup, sample_rate=rate)
    if head.storage != "device":
        yield "head.storage=device", _with_head(setup, storage="device")
    budget = head.logits_budget_mb
    while budget < 65536:  # doubled until the plan changes
        budget *= 2
        other = _with_head(setup, logits_budget_mb=budget)
        if images_per_second(other) > 1.05 * images_per_second(setup):
            yield f"head.logits_budget_mb={budget}, so that logits are not formed twice", other
            break
    yield f"batches of {2 * setup.batch} pictures", dataclasses.replace(setup, batch=2 * setup.batch)


def _with_head(setup: Setup, **changes: object) -> Setup:
    return dataclasses.replace(setup, head=setup.head.model_copy(update=changes))


def _lines(parts: dict[str, Any], unit: float, form: str) -> list[str]:
    return [f"{form.format(value / unit)}  {name}" for name, value in parts.items()]


def _one_of(option: str, text: str, known: Iterable[str]) -> None:
    if text not in known:
        raise UserError(f"{option} {text}: expected one of {', '.join(known)}")
