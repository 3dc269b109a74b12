"""Milliseconds of the head's forward, backward and step, beside the dense form, the plan and what the card allows."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody reads
from torch import Tensor, nn

from benchmarks.gpu_parts.bench import Bench
from benchmarks.gpu_parts.device import floor_ms
from benchmarks.gpu_parts.planned import planned_head
from dist_train.head import Head, HeadConfig

DIM = 512
SAMPLES, RATES = (1024, 8192), (0.1, 1.0)
DENSE_BYTES = 20  # of a logit: its forms in half and in float32, its logarithm, and the gradients of both


def run(bench: Bench) -> None:
    """Measure 1, 10 and 30 million identities, and the dense form where it fits."""
    sizes: tuple[tuple[int, str], ...] = ((1_000_000, "float32"), (10_000_000, "float32"), (30_000_000, "bfloat16"))
    samples = SAMPLES
    if bench.small:
        sizes, samples = ((500, "float32"), (700, "bfloat16")), (8,)
    arithmetics = ["bfloat16", "tf32", "float32"] if bench.cuda else ["float32"]
    for classes, dtype in sizes:
        # The type that `auto` takes is measured everywhere, the others where they take least time.
        for arithmetic in arithmetics if classes == sizes[0][0] else arithmetics[:1]:
            measure(bench, classes, dtype, arithmetic, samples)
        dense_too(bench, classes, samples)


def measure(bench: Bench, classes: int, dtype: str, arithmetic: str, samples: tuple[int, ...]) -> None:
    """One head, at each rate and batch."""
    name = f"{classes / 1e6:g} M {dtype}, products {arithmetic}"
    if not bench.enough(name, 0.2 if bench.small else 3):
        return
    config = HeadConfig.model_validate({"dtype": dtype, "arithmetic": arithmetic})
    with bench.case(name), quick_rows():
        head = Head(config, classes, DIM, group=None, rank=0, world_size=1, device=bench.device, seed=1)
        try:
            for rate in RATES:
                head.change(config.model_copy(update={"sample_rate": rate}))
                for count in samples:
                    case = f"{name}, rate {rate:g}, G {count}"
                    with bench.case(case):
                        time_head(bench, case, head, classes, count, arithmetic)
        finally:
            head.close()
            del head  # before the memory is given back


def time_head(bench: Bench, case: str, head: Head, classes: int, samples: int, arithmetic: str) -> None:
    """Time the choice of rows, and the step after it, several times each."""
    config = head.config
    plan = planned_head(bench, classes, samples, config)
    flops, moved = least(config, classes, samples)
    floors = floor_ms(bench, arithmetic, flops, moved)
    expected_ms = max(3 * floors.get("product_floor_ms", 0.0), plan["planned_ms"] if not bench.small else 0.0)
    if not bench.enough(case, 3 * expected_ms / 1e3):
        return
    batches = [
        (torch.randn(samples, DIM, device=bench.device).requires_grad_(), torch.randint(0, classes, (samples,)))
        for _ in range(2)
    ]
    choice, steps = [], []

    def prepare(number: int) -> None:
        head.prepare(batches[number % 2][1])

    def step(number: int) -> None:
        embeddings, labels = batches[number % 2]
        head(embeddings, labels).backward()
        head.step(1e-3)

    most = 2 if expected_ms > 1000 else 6
    for number in range(most + 1):
        choice.append(bench.once_ms(lambda number=number: prepare(number)))
        steps.append(bench.once_ms(lambda number=number: step(number)))
        if number and sum(steps) > 4000:
            break
    ms = sorted(steps[1:])[len(steps[1:]) // 2]
    figures = {"ms": ms, "choice_ms": min(choice[1:]), "peak_gb": bench.peak_gb(), **plan, **floors}
    if floors:
        figures["times_floor"] = ms / max(floors.values())
    bench.line(case, **figures, arithmetic=arithmetic, optimizer=config.optimizer, first_ms=steps[0])


def least(config: HeadConfig, classes: int, samples: int) -> tuple[float, float]:
    """Operations of the three products; bytes of the chosen rows and their momentum, each read and written once."""
    chosen = config.sample_rate * classes
    number_bytes = 2 if config.dtype == "bfloat16" else 4
    return 3 * 2 * chosen * DIM * samples, 2 * 2 * chosen * DIM * number_bytes


@contextmanager
def quick_rows() -> Iterator[None]:
    """Rows are the same some thousands again and again: a run draws them on the host, which takes a minute for many."""

    def fill(table: Tensor, start: int, seed: int, std: float) -> None:
        some = torch.randn(min(len(table), 1 << 16), table.shape[1], device=table.device) * std
        for part in table.split(1 << 16):
            part.copy_(some[: len(part)])

    with mock.patch("dist_train.head.open_rows.fill_normal", fill):
        yield


def dense_too(bench: Bench, classes: int, samples: tuple[int, ...]) -> None:
    """The ordinary form: all rows a parameter, F.linear and cross_entropy in bfloat16 autocast, SGD over all rows."""
    for rate in RATES:
        for count in samples:
            case = f"dense form, {classes / 1e6:g} M, rate {rate:g}, G {count}"
            needed = DENSE_BYTES * rate * classes * count + (3 + 2 * rate) * 4 * DIM * classes
            if bench.cuda and needed > 0.92 * torch.cuda.get_device_properties(0).total_memory:
                bench.line(case, skipped=f"does not fit: needs about {needed / 1e9:.0f} GB")
                continue
            if bench.enough(case, 0.1 if bench.small else 3):
                with bench.case(case):
                    bench.line(case, ms=time_dense(bench, classes, rate, count), peak_gb=bench.peak_gb())


def time_dense(bench: Bench, classes: int, rate: float, samples: int) -> float:
    """Median milliseconds of a step; `rate` of the rows are chosen as Partial FC does, on the device."""
    weight = nn.Parameter(torch.empty(classes, DIM, device=bench.device).normal_(0, 0.01))
    optimizer = torch.optim.SGD([weight], lr=1e-3, momentum=0.9, weight_decay=5e-4)
    embeddings = torch.randn(samples, DIM, device=bench.device).requires_grad_()
    labels = torch.randint(0, classes, (samples,), device=bench.device)

    def step() -> None:
        rows, target = weight, labels
        if rate < 1:
            order = torch.rand(classes, device=bench.device)
            order[labels.unique()] = 2.0
            index = order.topk(int(rate * classes))[1].sort()[0]
            rows, target = weight[index], torch.searchsorted(index, labels)
        with torch.autocast(bench.device.type, torch.bfloat16):
            cosines = F.linear(F.normalize(embeddings), F.normalize(rows))
            margin = torch.zeros_like(cosines[:, :1]).fill_(0.35)
            cosines = cosines.scatter_add(1, target[:, None], -margin)
            loss = F.cross_entropy(64 * cosines, target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return bench.ms(step, seconds=0.1 if bench.small else 1.0, most=6)
