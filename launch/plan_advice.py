"""What to change in a planned job, and what each change would give, found by planning the changed job."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from launch.plan_hardware import GIB
from launch.plan_model import Setup, fits, host_memory
from launch.plan_seconds import images_per_second, step_seconds

DECODED_PER_CORE = 3000  # images/s of 112 x 112 pixels by OpenCV on one core, decoding and augmentation
LEAST_GAIN = 0.05  # of images/s, below which a change is not worth a line


def advice(setup: Setup) -> Iterator[str]:
    """Single changes of the setup, with what each would give, best first; what limits it; what it asks for."""
    if not fits(setup):
        yield from _ways_to_fit(setup)
        return
    rate, seconds = images_per_second(setup), step_seconds(setup)
    changed = [(images_per_second(other), text) for text, other in _ways_to_speed(setup) if fits(other)]
    for faster, text in sorted(changed, reverse=True):
        if faster > (1 + LEAST_GAIN) * rate:
            yield f"{text}: {faster:,.0f} images/s (+{faster / rate - 1:.0%})"
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
    if head.dtype == "float32":
        yield "head.dtype=bfloat16", _with_head(setup, dtype="bfloat16")
    if head.optimizer != "rowwise_adagrad":
        yield "head.optimizer=rowwise_adagrad", _with_head(setup, optimizer="rowwise_adagrad")
    if setup.operands != "bfloat16" and setup.gpu.bfloat16:
        yield "head.arithmetic=bfloat16", _with_head(setup, arithmetic="bfloat16")
    if not setup.half and (setup.gpu.bfloat16 or setup.strategy == "ddp"):  # ZeRO takes no float16
        kind = "bfloat16" if setup.gpu.bfloat16 else "float16"
        yield f"train.precision={kind}", dataclasses.replace(setup, half=True)
    budget = head.logits_budget("cuda") >> 20
    while budget < 65536:  # doubled until the plan changes
        budget *= 2
        other = _with_head(setup, logits_budget_mb=budget)
        if images_per_second(other) > (1 + LEAST_GAIN) * images_per_second(setup):
            yield f"head.logits_budget_mb={budget}, so that logits are not formed twice", other
            break
    yield f"batches of {2 * setup.batch} pictures", dataclasses.replace(setup, batch=2 * setup.batch)
    passes = 2 * setup.accumulation
    yield f"{passes} forward passes a step", dataclasses.replace(setup, accumulation=passes)


def other_sizes(setup: Setup) -> Iterator[str]:
    """Half, twice and four times the GPUs: images/s, and how much of a GPU's speed is left."""
    each = images_per_second(setup) / setup.gpus
    for gpus in (setup.gpus // 2, setup.gpus * 2, setup.gpus * 4):
        if gpus < (1 if setup.strategy == "ddp" else 2):  # ZeRO splits over GPUs
            continue
        other = dataclasses.replace(setup, gpus=gpus)
        rate = images_per_second(other)
        speed = (
            f"{rate:,.0f} images/s, {rate / gpus / each:.0%} of a GPU's speed now" if fits(other) else "does not fit"
        )
        yield f"{gpus} GPU{'s' if gpus > 1 else ''}: {speed}"


def _with_head(setup: Setup, **changes: object) -> Setup:
    return dataclasses.replace(setup, head=setup.head.model_copy(update=changes))
