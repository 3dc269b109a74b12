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
    own_ms: dict[str, float] = {}
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
                        own_ms[dtype] = found["late_ms"] - found["forward_ms"]
                        bench.line(case, **found)
                        continue
                    # Rows and momentum; they come and go at once where the bus takes both.
                    moved = 0.1 * classes * 2 * DIM * (2 if dtype == "bfloat16" else 4)
                    host = bench.measured("device", "from host").get("to_device_gb_s")
                    floor = {"transfer_floor_ms": moved / host / 1e6} if host else {}
                    hidden = None if dtype not in own_ms else hidden_share(found, own_ms[dtype])
                    bench.line(case, hidden=hidden, **found, **floor, classes=classes, samples=samples)


def hidden_share(found: dict[str, float], own_ms: float) -> float | None:
    """The share of the rows' way that a forward pass hides; None where the way takes no time.

    Args:
        found: milliseconds that `overlap` gives.
        own_ms: of the head after a forward pass where its rows are on the device.
    """
    way = found["late_ms"] - found["forward_ms"] - own_ms
    return (found["late_ms"] - found["ahead_ms"]) / way if way > 0 else None


def overlap(bench: Bench, config: HeadConfig, classes: int, samples: int) -> dict[str, float]:
    """Median milliseconds of a forward pass and a step of the head behind it.

    `ahead_ms` has rows asked for before the forward pass, `late_ms` when it is over, so that it hides nothing;
    `forward_ms` is of the forward pass alone, which takes about three times as long as `bare_step_ms`, a step alone.
    """
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
        if not ahead:
            bench.wait()  # the forward pass is only queued: without this it would hide the rows' way, too
        head(embeddings, now).backward()
        head.step(1e-3)

    one = bench.ms(lambda: forward(1), seconds=0.1)
    for number in range(3):
        step(number, True, 0)
    bare = statistics.median(bench.once_ms(lambda number=number: step(number, False, 0)) for number in range(4))
    count = max(1, round(3 * bare / one))
    times: dict[str, list[float]] = {"ahead_ms": [], "late_ms": [], "forward_ms": []}
    for number in range(3 if bench.small else 8):
        for ahead, name in ((True, "ahead_ms"), (False, "late_ms")):
            times[name].append(bench.once_ms(lambda number=number, ahead=ahead: step(number, ahead, count)))
        times["forward_ms"].append(bench.once_ms(lambda: forward(count)))
    head.close()
    return {name: statistics.median(found) for name, found in times.items()} | {"bare_step_ms": bare}
