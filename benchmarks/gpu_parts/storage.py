"""Rows on the host and in a mapped file: how much of their way is hidden by the forward pass before the loss."""

import statistics
import tempfile
from pathlib import Path

import torch

from benchmarks.gpu_parts.bench import Bench
from benchmarks.gpu_parts.head_speed import DIM, quick_rows
from dist_train.head import Head, HeadConfig


def run(bench: Bench) -> None:
    """Time steps whose rows are asked for before the forward pass, at the loss, and whose rows are on the device."""
    classes, samples = (2000, 16) if bench.small else (1_000_000, 1024)
    device_ms: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for storage in ("device", "host", "mmap"):
            for dtype in ("float32", "bfloat16"):
                case = f"{storage}, {dtype}"
                if not bench.enough(case, 0.1 if bench.small else 3):
                    continue
                with bench.case(case), quick_rows():
                    config = HeadConfig(
                        storage=storage, sample_rate=0.1, dtype=dtype, storage_dir=Path(folder) / case
                    )  # fmt: skip
                    (Path(folder) / case).mkdir()
                    found = overlap(bench, config, classes, samples)
                    if storage == "device":
                        device_ms[dtype] = found["ahead_ms"]
                        bench.line(case, **found)
                        continue
                    # Rows and momentum; they come and go at once where the bus takes both.
                    moved = 0.1 * classes * 2 * DIM * (2 if dtype == "bfloat16" else 4)
                    host = bench.measured("device", "from host").get("to_device_gb_s")
                    floor = {"transfer_floor_ms": moved / host / 1e6} if host else {}
                    near_ms, hidden = device_ms.get(dtype), None
                    if near_ms is not None and found["late_ms"] > near_ms:
                        hidden = (found["late_ms"] - found["ahead_ms"]) / (found["late_ms"] - near_ms)
                    bench.line(case, hidden=hidden, **found, **floor, classes=classes, samples=samples)


def overlap(bench: Bench, config: HeadConfig, classes: int, samples: int) -> dict[str, float]:
    """Median milliseconds of a step after a forward pass that takes three times as long as rows of the host."""
    head = Head(config, classes, DIM, group=None, rank=0, world_size=1, device=bench.device, seed=1)
    embeddings = torch.randn(samples, DIM, device=bench.device).requires_grad_()
    side = 128 if bench.small else 8192
    square = torch.randn(side, side, device=bench.device)
    out = torch.empty_like(square)
    labels = [torch.randint(0, classes, (samples,)) for _ in range(4)]

    def forward(count: int) -> None:
        for _ in range(count):
            torch.mm(square, square, out=out)

    def step(number: int, ahead: bool, count: int) -> None:
        now = labels[number % 4]
        if ahead:
            head.prepare(now)
        forward(count)
        head(embeddings, now).backward()
        head.step(1e-3)

    one = bench.ms(lambda: forward(1), seconds=0.1)
    for number in range(3):
        step(number, True, 0)
    bare = statistics.median(bench.once_ms(lambda number=number: step(number, False, 0)) for number in range(4))
    count = max(1, round(3 * bare / one))
    times: dict[bool, list[float]] = {True: [], False: []}
    for number in range(3 if bench.small else 8):
        for ahead, found in times.items():
            found.append(bench.once_ms(lambda number=number, ahead=ahead: step(number, ahead, count)))
    head.close()
    ahead_ms, late_ms = (statistics.median(times[ahead]) for ahead in (True, False))
    return {"ahead_ms": ahead_ms, "late_ms": late_ms, "bare_step_ms": bare, "forward_ms": count * one}
