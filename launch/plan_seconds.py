"""Seconds of a training step, from the model of its work, data sheets, and the efficiencies below."""

import math

from launch.plan_hardware import Gpu
from launch.plan_head import (
    HeadShape,
    drawn_classes,
    head_flops,
    head_products,
    head_traffic,
    kernel_traffic,
    product_flops,
)
from launch.plan_model import Setup, head_shape, network_bytes

# Reached shares of the peak figures. Large float32 products come to about three quarters of the data sheet
# and streaming kernels to about four fifths of the bandwidth; convolutions of this field's widths to less than half.
HEAD_FLOPS_SHARE = 0.75
BANDWIDTH_SHARE = 0.8
CONV_FLOPS_SHARE = 0.45
# The head's products in 16 bits: those of the kernel, with exponentials behind them, and those of the library. Measured
# on an H100: 363 and 788 of 989 TFLOP/s at 8,192 pictures, 156,250 classes and 512 numbers (the profile of the head in
# benchmarks/gpu_h100.jsonl).
KERNEL_FLOPS_SHARE = 0.367
LIBRARY_FLOPS_SHARE = 0.796
LINK_SHARE = 0.7
# Reads and writes of the saved activations in a whole step: convolutions, two passes of each BatchNorm forward and two
# backward, PReLU, shortcuts, all their gradients. The value is fitted to one published figure, arcface_torch with R50
# on 8 V100 at 125,000 identities (5,004 images/s); all other figures are predictions.
ACTIVATION_PASSES = 18.6

LATENCY_S = 50e-6  # latency of a collective on many GPUs
PCIE_GB_S = 20.0  # host to GPU, PCIe 4.0 x16 in practice
HOST_ROWS_GB_S = 8.0  # one thread's copy of scattered rows in host memory
DISK_ROWS_GB_S = 2.0  # one thread's copy of scattered rows from NVMe through the page cache
# One thread's draw of a class and its way to the GPU: the mean of what `choice_ms` of four lines of
# benchmarks/gpu_h100.jsonl comes to (10 and 30 million identities at rate 0.1), which are from 34 to 54 ns.
DRAW_S = 42e-9


def head_seconds(shape: HeadShape, gpu: Gpu, arithmetic: str) -> dict[str, float]:
    """Seconds of a step's head on a GPU.

    Args:
        shape: of the head.
        gpu: its data sheet.
        arithmetic: type of the products' operands. Kernels form the weights with "bfloat16", torch's operators else.

    Returns:
        Of products, and of reading and writing rows and logits.
    """
    bandwidth = BANDWIDTH_SHARE * gpu.memory_gb_s * 1e9
    rate = gpu.tflops(arithmetic) * 1e12
    if not shape.kernels:
        return {
            "head, products": head_flops(shape) / (HEAD_FLOPS_SHARE * rate),
            "head, rows and logits": head_traffic(shape) / bandwidth,
        }
    made, flops, weights = head_products(shape), product_flops(shape), shape.logits_bytes / bandwidth
    kernel, library = (flops / (share * rate) for share in (KERNEL_FLOPS_SHARE, LIBRARY_FLOPS_SHARE))
    # A product of narrow centers waits for the weights that it writes or reads.
    products = made.formed * max(kernel, weights) + made.searched * kernel + made.multiplied * max(library, weights)
    return {"head, products": products, "head, rows and logits": kernel_traffic(shape) / bandwidth}


def exchange_seconds(setup: Setup, received: int) -> dict[str, float]:
    """Seconds that bytes take which a rank receives in rings, by level; levels work at once, and the slowest counts.

    A ring enters each machine once, through all network adapters of its GPUs together: the bandwidth of a node's
    border is theirs, as NCCL's tests count it (nccl-tests, doc/PERFORMANCE.md, "bus bandwidth").
    """
    node = min(setup.gpus, setup.gpus_per_node)
    levels = {"within": 0.0 if node == 1 else received / (LINK_SHARE * 1e9 * setup.gpu.link_gb_s)}
    levels["between"] = 0.0 if setup.gpus == node else received / (LINK_SHARE * 1e9 * node * setup.network_gb_s)
    return levels


def step_seconds(setup: Setup) -> dict[str, float]:
    """Seconds of a step, by part; the step takes the sum."""
    times, work = setup.accumulation, work_seconds(setup)
    passes = times * (work["forward"] + work["backward"])
    parts = {
        "backbone": passes + work["update"],
        **{name: seconds for name, seconds in work.items() if name.startswith("head")},
        "exchange of embeddings": work["exchange of embeddings"],
        # It overlaps the last backward pass; the step waits for the rest, and for weights that others have updated.
        "exchange of gradients": max(0.0, work["gradient exchange"] - work["backward"]) + work["weights gathered"],
        "rows from host or disk": work["rows waited for"],
    }
    # The host draws a step's classes while the GPU is at the step before, and neither begins another step before that.
    return parts | {"draw of classes": max(0.0, work["classes drawn"] - math.fsum(parts.values()))}


def work_seconds(setup: Setup) -> dict[str, float]:
    """Seconds of work in a step, by part, whether something else hides it or not.

    `forward` and `backward` are one pass of the backbone; all else is of the whole step. A gradient takes as long as
    two forward passes. `rows waited for` is no work, but what other work does not hide of `rows moved`; `classes drawn`
    is the host's.
    """
    gpu, backbone, times = setup.gpu, setup.backbone, setup.accumulation
    shape = head_shape(setup)
    bandwidth = BANDWIDTH_SHARE * gpu.memory_gb_s * 1e9
    flops = CONV_FLOPS_SHARE * (gpu.half_tflops if setup.half else gpu.float32_tflops) * 1e12
    kept = backbone.saved * (2 if setup.half else 4)
    each = setup.views * setup.batch * (6 * backbone.macs / flops + ACTIVATION_PASSES * kept / bandwidth)
    exchanged = network_bytes(setup)
    gradients, gathered = exchanged.pop("backbone gradient"), exchanged.pop("backbone weights gathered", 0)
    if setup.strategy == "zero3":  # weights come under a pass of the backbone, too
        gradients, gathered = gradients + gathered, 0
    embeddings = max(exchange_seconds(setup, sum(exchanged.values())).values())
    head = head_seconds(shape, gpu, setup.operands)
    a_row = row_seconds(shape)
    return {
        "forward": each / 3,
        "backward": each * 2 / 3,
        "update": 4 * backbone.parameters * (3 + 3 * setup.moments) / bandwidth,
        **head,
        "exchange of embeddings": 0.0 if setup.gpus == 1 else embeddings + 3 * times * LATENCY_S,
        "gradient exchange": max(exchange_seconds(setup, gradients).values()),
        "weights gathered": max(exchange_seconds(setup, gathered).values()),
        "rows moved": a_row * shape.moved,
        "rows waited for": rows_wait(shape, a_row, each / 3, each * 2 / 3 + math.fsum(head.values()) / times),
        "classes drawn": DRAW_S * drawn_classes(shape),
    }


def row_seconds(shape: HeadShape) -> float:
    """Seconds of a class's rows on the way to a GPU from where they are stored, or back; 0 where that is its memory."""
    if not shape.staged:
        return 0.0
    rate = HOST_ROWS_GB_S if shape.config.storage == "host" else DISK_ROWS_GB_S
    return shape.class_bytes / (min(rate, PCIE_GB_S) * 1e9)


def rows_wait(shape: HeadShape, a_row: float, forward: float, rest: float) -> float:
    """Seconds of a step in which a GPU waits for rows.

    One thread moves them in order (`head/storage.py`): what the step before has updated goes back once it is updated,
    then come the rows of each pass, for its head, and of several passes their union, for the update. It never rests and
    the GPU goes on meanwhile, so the wait is how far the thread is behind where it is farthest behind.

    Args:
        shape: of the head.
        a_row: seconds of a class's rows on their way.
        forward: of the backbone's forward pass, in seconds; the head comes after it.
        rest: seconds of a pass behind its forward pass.
    """
    times = shape.accumulation
    # The rows that a head needs come ever later or ever earlier with each pass: the first or the last counts.
    behind = [
        a_row * (shape.updated + number * shape.chosen) - number * forward - (number - 1) * rest
        for number in (1, times)
    ]
    if times > 1:
        behind.append(a_row * shape.moved - times * (forward + rest))
    return max(0.0, *behind)


def images_per_second(setup: Setup) -> float:
    """Pictures a second over all ranks."""
    return setup.samples * setup.accumulation / math.fsum(step_seconds(setup).values())
