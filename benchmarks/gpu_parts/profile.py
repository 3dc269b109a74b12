"""Where the device's time goes in a training step and in a step of the head: tables of torch's profiler, as text."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_parts.bench import Bench
from benchmarks.gpu_parts.head_speed import DIM, quick_rows
from benchmarks.gpu_parts.program import Steps, random_batch, synthetic
from dist_train.head import Head, HeadConfig

STEPS, KERNELS = 3, 15


def run(bench: Bench) -> None:
    """Profile both."""
    network, classes, samples, size = ("nano", 50, 4, 32) if bench.small else ("iresnet100", 100_000, 128, 112)
    with bench.case("training step"), tempfile.TemporaryDirectory() as name:
        program = synthetic(
            Path(name), bench.device, classes, size, backbone={"name": network, "embedding_dim": 512},
            train={"precision": "bfloat16" if bench.cuda else "float32"},
        )  # fmt: skip
        batch = random_batch(bench.device, samples, classes, size)
        table(bench, "training step", "gpu-profile-step.txt", Steps(program, batch))
        program.close()
    # The last is the share of one of 64 GPUs in 100 million identities, with 128 pictures a GPU.
    for classes, together, rate in ((1_000_000, 1024, 0.1), (1_000_000, 1024, 1.0), (1_562_500, 8192, 0.1)):
        rows, together = (1000, 32) if bench.small else (classes, together)
        case = f"head, {classes / 1e6:g} M, rate {rate:g}, G {together}"
        with bench.case(case), quick_rows():
            config = HeadConfig(sample_rate=rate, logits_budget_mb=4096)
            head = Head(config, rows, DIM, group=None, rank=0, world_size=1, device=bench.device, seed=1)
            embeddings = torch.randn(together, DIM, device=bench.device).requires_grad_()
            labels = torch.randint(0, rows, (together,))

            def step(head: Head = head, embeddings: torch.Tensor = embeddings, labels: torch.Tensor = labels) -> None:
                head(embeddings, labels).backward()
                head.step(1e-3)

            table(bench, case, f"gpu-profile-head-{classes}-{rate:g}.txt", step)
            head.close()


def table(bench: Bench, case: str, name: str, work: Callable[[], Any]) -> None:
    """Write the table of some steps, and say what takes most of them."""
    for _ in range(3):
        work()
    bench.wait()
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.cuda else [])]
    with profile(activities=kinds) as seen:
        for _ in range(STEPS):
            work()
        bench.wait()
    averages = seen.key_averages()
    key = "self_device_time_total" if bench.cuda else "self_cpu_time_total"
    text = averages.table(sort_by=key, row_limit=KERNELS, max_name_column_width=100)
    bench.path(name).write_text(f"{case}, {STEPS} steps\n{text}\n", encoding="utf-8")
    most = sorted(averages, key=lambda each: -getattr(each, key))[:KERNELS]
    # Kernels alone: an operator's time is that of its kernels again.
    kernels = [each for each in averages if not each.key.startswith(("aten::", "_Border", "Activity Buffer"))]
    total = sum(getattr(each, key) for each in kernels) / 1e3 / STEPS
    shares = {each.key[:90]: getattr(each, key) / 1e3 / STEPS for each in most}
    bench.line(case, device_ms=total if bench.cuda else None, ms_a_step=shares, file=name)
