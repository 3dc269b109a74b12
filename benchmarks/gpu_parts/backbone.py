"""Images a second of whole training steps, beside published figures and the plan."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.gpu_parts.bench import Bench
from benchmarks.gpu_parts.planned import planned_setup
from benchmarks.gpu_parts.program import Steps, random_batch, synthetic
from dist_train.train.recognition import Recognition
from launch.plan_model import gpu_memory
from launch.plan_seconds import images_per_second

# Images/s a GPU in arcface_torch's table of speeds: 8 x V100-32GB, R50, half precision, 128 pictures a GPU, 125,000
# identities, every class in every step. No figure for an H100 is published there, and other networks stand beside none.
PUBLISHED = {"iresnet50": {"arcface_torch, R50, 1 of 8 V100, 125,000 identities": 4824 / 8}}

TOGETHER = 10  # steps between two waits for the device


def run(bench: Bench) -> None:
    """Measure R50 and R100, and R50 in other forms."""
    classes, batch = (50, 4) if bench.small else (100_000, 128)
    names = ("nano",) if bench.small else ("iresnet50", "iresnet100")
    for name in names:
        measure(bench, name, name, classes, batch, channels_last)
    if not bench.small:
        measure(bench, "iresnet100, 256 pictures", names[1], classes, 256, channels_last)
    measure(bench, f"{names[0]}, cudnn.benchmark", names[0], classes, batch, searched)
    if bench.cuda:
        for name in names:
            measure(bench, f"{name}, CUDA graphs", name, classes, batch, graphed)
            measure(bench, f"{name}, float16", name, classes, batch, channels_last, precision="float16")


Form = Callable[[Recognition, Any, torch.dtype], None]


def channels_last(program: Recognition, batch: Any, dtype: torch.dtype) -> None:
    """As training has it."""


def searched(program: Recognition, batch: Any, dtype: torch.dtype) -> None:
    """The fastest convolution is searched for."""
    torch.backends.cudnn.benchmark = True


def graphed(program: Recognition, batch: Any, dtype: torch.dtype) -> None:
    """The backbone's forward and backward passes as CUDA graphs."""
    images = batch.images.contiguous(memory_format=program._memory_format)
    program.replica.train()
    with torch.autocast("cuda", dtype, cache_enabled=False):
        graphs: nn.Module = torch.cuda.make_graphed_callables(program.backbone, (images,))
    program.replica.discard()
    program.replica._forward = graphs  # type: ignore[attr-defined]  # of DDP's replica, which this part has


def measure(
    bench: Bench,
    case: str,
    name: str,
    classes: int,
    samples: int,
    form: Form,
    compile: bool = False,
    precision: str = "bfloat16",
) -> None:
    """Time whole steps of one network over random pictures."""
    size = 32 if bench.small else 112
    precision = precision if bench.cuda else "float32"
    if not bench.enough(case, 0.5 if bench.small else 6):
        return
    with bench.case(case), tempfile.TemporaryDirectory() as folder:
        program = synthetic(
            Path(folder), bench.device, classes, size,
            backbone={"name": name, "embedding_dim": 512},
            train={
                "precision": precision, "compile": compile, "global_batch_size": samples, "micro_batch_size": samples,
            },
        )  # fmt: skip
        try:
            batch = random_batch(bench.device, samples, classes, size)
            form(program, batch, getattr(torch, precision))
            steps = Steps(program, batch)
            first = steps()
            ms = together_ms(bench, steps, seconds=0.2 if bench.small else 2.0)
            steps.settle()
            backbone_ms = together_ms(bench, lambda: passes(program, batch), seconds=0.1 if bench.small else 0.7)
            more: dict[str, Any] = {"peak_gb": bench.peak_gb()}
            if name.startswith("iresnet"):
                setup = planned_setup(bench, classes, samples, program.head.config, name)
                planned = images_per_second(setup)
                more |= {"planned": planned, "planned_gb": sum(gpu_memory(setup).values()) / 1e9}
                more |= {"published": PUBLISHED[name]} if name in PUBLISHED else {}
            loss = float(first.detach())
            bench.line(
                case, images_s=1000 * samples / ms, ms=ms, backbone_ms=backbone_ms, loss=loss, batch=samples,
                classes=classes, precision=precision, ok=loss == loss, **more,
            )  # fmt: skip
        finally:
            torch.backends.cudnn.benchmark = False
            program.close()


def together_ms(bench: Bench, work: Callable[[], Any], seconds: float) -> float:
    """Median milliseconds of `work`, of which the device has several to do: the host may be ahead, as in training."""
    count = 3 if bench.small else TOGETHER
    return bench.ms(lambda: [work() for _ in range(count)], seconds, warmup=1) / count


def passes(program: Recognition, batch: Any) -> None:
    """Forward and backward pass of the backbone alone."""
    images = batch.images.contiguous(memory_format=program._memory_format)
    embeddings = program.replica.embed(images)
    program.replica.backward(embeddings, torch.ones_like(embeddings, dtype=torch.float32) * 1e-3)
    program.replica.discard()
