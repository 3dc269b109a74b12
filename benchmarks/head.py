"""What the head costs in time and memory, beside the ordinary dense form and the bare matrix products.

    python benchmarks/head.py                      # all cases
    python benchmarks/head.py --case c1m_rate0.1

Two ranks with one thread each, 64 images a rank, D = 512. One JSON line a case on standard output. Ours, the
baseline and the floor (the three products [128 x 512 x rows] alone, by torch.mm; `own_products` by the library that our
head takes) run one after the other in fresh processes.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from dense_head import DenseHead
from line import print_line

from dist_train.head import Head, HeadConfig
from dist_train.head.sizes import CPU_BLOCK_ROWS
from dist_train.runtime.matmul import add_matmul, matmul

RANKS, BATCH, DIM = 2, 64, 512
SAMPLES = RANKS * BATCH
CPU = torch.device("cpu")
Batch = tuple[torch.Tensor, torch.Tensor]


def random_batch(rank: int, step: int, classes: int) -> Batch:
    """Local embeddings [B, D] without structure, and labels [B]."""
    generator = torch.Generator().manual_seed(step * RANKS + rank)
    labels = torch.randint(0, classes, (BATCH,), generator=generator)
    return torch.randn(BATCH, DIM, generator=generator).requires_grad_(), labels


def peak_mb() -> float:
    """This process's highest resident memory so far, in MB of 10**6 bytes, shared file pages left out."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    fields = dict(line.split(":", 1) for line in status.splitlines())
    mapped = int(fields["RssFile"].split()[0])
    return (int(fields["VmHWM"].split()[0]) - mapped) * 1024 / 1e6


def resident_mb() -> float:
    """This process's private resident memory now, in MB of 10**6 bytes."""
    info = psutil.Process().memory_info()
    return (info.rss - info.shared) / 1e6


def timed(step: Callable[[int], Any], warmup: int, steps: int) -> float:
    """Median milliseconds of a step; ranks start each together."""
    times = []
    for number in range(warmup + steps):
        dist.barrier()
        begin = time.perf_counter()
        step(number)
        dist.barrier()
        times.append((time.perf_counter() - begin) * 1e3)
    return statistics.median(times[warmup:])


def run_ours(rank: int, settings: dict, classes: int, steps: int, trained: tuple[float, float] | None = None) -> dict:
    """Our head: milliseconds, memory, and what it says of itself."""
    base = resident_mb()
    begin = time.perf_counter()
    config = HeadConfig(**settings)
    head = Head(config, classes, DIM, group=None, rank=rank, world_size=RANKS, device=CPU, seed=1)
    built_s = time.perf_counter() - begin
    batches = [random_batch(rank, i, classes) for i in range(4)]
    if trained is not None:
        batches = [trained_batch(head, rank, i, classes, *trained) for i in range(4)]

    def step(number: int) -> None:
        embeddings, labels = batches[number % len(batches)]
        head.prepare(labels)
        loss = head(embeddings, labels)
        loss.backward()
        head.step(1e-3 if trained is not None else 0.1)

    ms = timed(step, 3, steps)
    said = head.statistics()
    peak = peak_mb()
    head.close()
    return {"ms": ms, "base_mb": base, "peak_mb": peak, "built_s": built_s, **said}


def trained_batch(head: Head, rank: int, step: int, classes: int, mean: float, spread: float) -> Batch:
    """Embeddings as a trained network gives them: cosines to their own centers normal with `mean` and `spread`."""
    generator = torch.Generator().manual_seed(step)
    labels = torch.randint(0, classes, (SAMPLES,), generator=generator)
    centers = torch.zeros(SAMPLES, DIM)
    mine = (labels >= head.start) & (labels < head.stop)
    centers[mine] = torch.nn.functional.normalize(head.class_centers()[labels[mine] - head.start].float())
    dist.all_reduce(centers)
    cosines = (torch.randn(SAMPLES, 1, generator=generator) * spread + mean).clamp(-0.2, 0.98)
    across = torch.randn(SAMPLES, DIM, generator=generator)
    across = torch.nn.functional.normalize(across - (across * centers).sum(dim=1, keepdim=True) * centers)
    embeddings = 20 * (cosines * centers + (1 - cosines.square()).sqrt() * across)
    own = slice(rank * BATCH, (rank + 1) * BATCH)
    return embeddings[own].clone().requires_grad_(), labels[own]


def run_filter_error(rank: int, eps: float, classes: int, mean: float, spread: float) -> dict:
    """Squared norms of what the filter changes in the gradients of embeddings and rows, and of these gradients."""
    found = []
    for settings in ({}, {"filter_eps": eps}):
        config = HeadConfig(momentum=0, weight_decay=0, **settings)
        head = Head(config, classes, DIM, group=None, rank=rank, world_size=RANKS, device=CPU, seed=1)
        before = head.class_centers().clone()
        embeddings, labels = trained_batch(head, rank, 0, classes, mean, spread)
        head(embeddings, labels).backward()
        head.step(1e-3)
        found.append((embeddings.grad.double(), (head.class_centers() - before).double()))
    pairs = zip(*found, strict=True)
    return {"squares": [(float((a - b).square().sum()), float(a.square().sum())) for a, b in pairs]}


def run_dense(rank: int, classes: int, rate: float, steps: int) -> dict:
    """The baseline: milliseconds and memory."""
    base = resident_mb()
    head = DenseHead(classes, DIM, rate, rank, RANKS)
    batches = [random_batch(rank, i, classes) for i in range(4)]
    ms = timed(lambda number: head.step(*batches[number % 4]), 2, steps)
    return {"ms": ms, "base_mb": base, "peak_mb": peak_mb()}


def run_floor(_rank: int, rows: int, block: int) -> dict:
    """The three products of a step over `rows` rows in reused memory, by `torch.mm`, or by ours `block` by block."""
    queries, weight = torch.randn(SAMPLES, DIM), torch.randn(rows, DIM)
    logits, out = torch.empty(rows, SAMPLES), torch.zeros(SAMPLES, DIM)
    gradient = torch.empty_like(weight)

    def step(_number: int) -> None:
        torch.mm(weight, queries.T, out=logits)
        torch.mm(logits.T, weight, out=out)
        torch.mm(logits, queries, out=gradient)

    def ours(_number: int) -> None:
        for start in range(0, rows, block):
            some = slice(start, start + block)
            matmul(weight[some], queries.T, out=logits[some])
            add_matmul(out, logits[some].T, weight[some])
            matmul(logits[some], queries, out=gradient[some])

    return {"ms": timed(ours if block else step, 2, 9)}


def run_overlap(_rank: int, settings: dict, classes: int, steps: int) -> dict:
    """Milliseconds of a step whose rows are fetched while a forward computes, and of one that fetches them after it.

    The forward is matrix products that take three times as long as the fetch: one thread moves rows, and has the ones
    of the step before to write back first. Both kinds of steps are made in turns.
    """
    head = Head(HeadConfig(**settings), classes, DIM, group=None, rank=0, world_size=1, device=CPU, seed=1)
    embeddings, labels = random_batch(0, 0, classes)
    left, right, out = torch.randn(BATCH, DIM), torch.randn(DIM, DIM), torch.empty(BATCH, DIM)
    products = 1

    def fetch(_number: int) -> None:
        head.prepare(labels)
        head.class_centers()  # waits for what is being fetched

    def forward(_number: int) -> None:
        for _ in range(products):
            torch.mm(left, right, out=out)

    def step(ahead: bool) -> None:
        if ahead:
            head.prepare(labels)
        forward(0)
        head(embeddings, labels).backward()
        head.step(0.1)

    fetch_ms = timed(fetch, 2, 7)
    head.zero_grad()
    products = 1000
    products = max(1, round(3000 * fetch_ms / timed(forward, 1, 5)))
    forward_ms = timed(forward, 1, 5)
    times: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(steps):
        for ahead, found in times.items():
            found.append(timed(lambda _, ahead=ahead: step(ahead), 0, 1))
    peak = peak_mb()
    head.close()
    ahead_ms, after_ms = (statistics.median(found[2:]) for found in times.values())
    return {"ms": ahead_ms, "after_ms": after_ms, "fetch_ms": fetch_ms, "forward_ms": forward_ms, "peak_mb": peak}


def _enter(rank: int, ranks: int, port_file: str, results: Any, function: Callable[..., dict], args: tuple) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{port_file}", rank=rank, world_size=ranks)
    results.put((rank, function(rank, *args)))
    dist.barrier()
    dist.destroy_process_group()


def on_ranks(function: Callable[..., dict], *args: Any, ranks: int = RANKS) -> list[dict]:
    """Results of `function(rank, *args)` in fresh processes."""
    context = mp.get_context("spawn")
    results = context.Queue()
    with tempfile.TemporaryDirectory() as directory:
        meeting = str(Path(directory) / "ranks")
        processes = [
            context.Process(target=_enter, args=(rank, ranks, meeting, results, function, args))
            for rank in range(ranks)
        ]
        for process in processes:
            process.start()
        values = dict(results.get() for _ in processes)
        for process in processes:
            process.join()
    return [values[rank] for rank in range(ranks)]


def growth(ranks: list[dict], classes: int) -> float:
    """Bytes of memory per identity that the head added to its processes, workspace included."""
    return round(sum(r["peak_mb"] - r["base_mb"] for r in ranks) * 1e6 / classes, 1)


def emit(case: str, ours: float, baseline: float | None, unit: str, **more: Any) -> None:
    """Print a case's line."""
    ratio = None if baseline is None else round(baseline / ours, 3)
    line = {"benchmark": "head", "case": case, "ours": ours, "baseline": baseline, "ratio": ratio, "unit": unit}
    run = {"ranks": RANKS, "batch_per_rank": BATCH, "dim": DIM, "threads_per_rank": 1, "torch": torch.__version__}
    print_line(line | more | {"run": run | more.get("run", {})})


def cost(case: str, classes: int, rate: float, steps: int = 15) -> None:
    """Time and memory in float32 against baseline and floor."""
    ours = on_ranks(run_ours, {"sample_rate": rate}, classes, steps)
    dense = on_ranks(run_dense, classes, rate, 7)
    floor, products = (on_ranks(run_floor, int(classes * rate / RANKS), n)[0]["ms"] for n in (0, CPU_BLOCK_ROWS))
    emit(
        case,
        round(ours[0]["ms"], 1),
        round(dense[0]["ms"], 1),
        "ms/step",
        floor=round(floor, 1),
        over_floor=round(ours[0]["ms"] / floor, 3),
        own_products=round(products, 1),
        bytes_per_identity=growth(ours, classes),
        baseline_bytes_per_identity=growth(dense, classes),
        peak_rss_mb=round(max(r["peak_mb"] for r in ours)),
        run={"classes": classes, "sample_rate": rate, "dtype": "float32", "optimizer": "sgd, momentum"},
    )


def filtered(case: str, classes: int = 100_000) -> None:
    """Gradient filtering at rate 1 on embeddings of a trained network, against the unfiltered step."""
    # How hard the hardest samples of a batch still are decides what can be left out.
    for eps, cosines in ((3e-8, (0.8, 0.1)), (3e-9, (0.8, 0.05)), (3e-8, (0.9, 0.05))):
        plain = on_ranks(run_ours, {}, classes, 15, cosines)
        ours = on_ranks(run_ours, {"filter_eps": eps}, classes, 15, cosines)
        squares = [result["squares"] for result in on_ranks(run_filter_error, eps, classes, *cosines)]
        errors = [(sum(q[i][0] for q in squares) / sum(q[i][1] for q in squares)) ** 0.5 for i in range(2)]
        emit(
            case,
            round(ours[0]["ms"], 1),
            round(plain[0]["ms"], 1),
            "ms/step",
            share_of_unfiltered=round(ours[0]["ms"] / plain[0]["ms"], 3),
            gradient_error={"embeddings": float(f"{errors[0]:.2g}"), "rows": float(f"{errors[1]:.2g}")},
            classes_updated=round(ours[0]["classes_updated"], 4),
            peak_rss_mb=round(max(r["peak_mb"] for r in ours)),
            run={"classes": classes, "sample_rate": 1.0, "filter_eps": eps, "target_cosines": cosines},
        )


LEAN = {"dtype": "bfloat16", "optimizer": "rowwise_adagrad"}


def lean_memory(case: str, classes: int = 1_000_000) -> None:
    """bfloat16 rows with row-wise state: memory per identity, beside float32 with momentum."""
    ours = on_ranks(run_ours, LEAN | {"sample_rate": 0.1}, classes, 8)
    full = on_ranks(run_ours, {"sample_rate": 0.1}, classes, 8)
    emit(
        case,
        growth(ours, classes),
        growth(full, classes),
        "bytes/identity",
        ms=round(ours[0]["ms"], 1),
        baseline_ms=round(full[0]["ms"], 1),
        peak_rss_mb=round(max(r["peak_mb"] for r in ours)),
        run={"classes": classes, "sample_rate": 0.1, **LEAN, "baseline": "ours in float32 with momentum"},
    )


def sixteen_million(case: str, rows: int = 100_000) -> None:
    """20 steps with 16 million identities, beside 1 million at the same number of chosen rows."""
    many, few = 16_000_000, 1_000_000
    ours = on_ranks(run_ours, LEAN | {"sample_rate": rows / many}, many, 20)
    small = on_ranks(run_ours, LEAN | {"sample_rate": rows / few}, few, 20)
    emit(
        case,
        round(ours[0]["ms"], 1),
        None,
        "ms/step",
        one_million_ms=round(small[0]["ms"], 1),
        over_one_million=round(ours[0]["ms"] / small[0]["ms"], 3),
        bytes_per_identity=growth(ours, many),
        build_s=round(ours[0]["built_s"], 1),
        peak_rss_mb=round(max(r["peak_mb"] for r in ours)),
        run={"classes": many, "rows_chosen": rows, "steps": 20, **LEAN},
    )


def forty_million(case: str, classes: int = 40_000_000, rows: int = 20_000) -> None:
    """20 steps with 40 million identities in a memory-mapped store with its spare copy, deleted afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="headcount-store-", dir=os.environ.get("HEADCOUNT_STORE_DIR")))
    needed, free = 2 * classes * DIM * 2 * 1.1, shutil.disk_usage(directory).free
    try:
        if free < needed:
            sys.exit(f"case {case} needs {needed / 1e9:.0f} GB in {directory}, {free / 1e9:.0f} GB are free")
        settings = LEAN | {"storage": "mmap", "storage_dir": directory, "sample_rate": rows / classes}
        ours = on_ranks(run_ours, settings, classes, 20)
    finally:
        shutil.rmtree(directory)
    emit(
        case,
        round(ours[0]["ms"], 1),
        None,
        "ms/step",
        bytes_per_identity=growth(ours, classes),
        build_s=round(ours[0]["built_s"], 1),
        peak_rss_mb=round(max(r["peak_mb"] for r in ours)),
        run={"classes": classes, "rows_chosen": rows, "steps": 20, "storage": "mmap", **LEAN},
    )


def host_overlap(case: str, classes: int = 500_000) -> None:
    """Rows in host memory fetched while a longer forward computes, beside a fetch at the loss."""
    settings = {"storage": "host", "sample_rate": 0.1}
    found = on_ranks(run_overlap, settings, classes, 11, ranks=1)[0]  # one rank: the fetch needs a core of its own
    emit(
        case,
        round(found["ms"], 1),
        round(found["after_ms"], 1),
        "ms/step",
        fetch_ms=round(found["fetch_ms"], 1),
        forward_ms=round(found["forward_ms"], 1),
        hidden=round((found["after_ms"] - found["ms"]) / found["fetch_ms"], 3),
        peak_rss_mb=round(found["peak_mb"]),
        run={"classes": classes, "ranks": 1, "dtype": "float32", "optimizer": "sgd, momentum", **settings},
    )


def curve(case: str) -> None:
    """Cost against the number of identities at rate 0.1, for the plot; float32 as far as memory carries it."""
    for classes in (10_000, 100_000, 1_000_000, 2_000_000, 4_000_000, 16_000_000):
        steps = 9 if classes <= 1_000_000 else 3
        for kind in ({"dtype": "float32"}, LEAN):
            if kind is not LEAN and classes > 2_000_000:
                continue
            ours = on_ranks(run_ours, kind | {"sample_rate": 0.1}, classes, steps)
            dense = None if kind is LEAN else on_ranks(run_dense, classes, 0.1, 3)
            emit(
                case,
                round(ours[0]["ms"], 1),
                None if dense is None else round(dense[0]["ms"], 1),
                "ms/step",
                bytes_per_identity=growth(ours, classes),
                baseline_bytes_per_identity=None if dense is None else growth(dense, classes),
                peak_rss_mb=round(max(r["peak_mb"] for r in ours)),
                run={"classes": classes, "sample_rate": 0.1, **kind},
            )


CASES: dict[str, Callable[[str], None]] = {
    "c1m_rate0.1": lambda case: cost(case, 1_000_000, 0.1),
    "c100k_rate1": lambda case: cost(case, 100_000, 1.0),
    "c100k_rate1_filtered": filtered,
    "bf16_rowwise": lean_memory,
    "c16m": sixteen_million,
    "c40m_mmap": forty_million,
    "host_overlap": host_overlap,
    "curve": curve,
}


def main() -> None:
    """Run one case or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=sorted(CASES), help="only this case")
    chosen = parser.parse_args().case
    for name in [chosen] if chosen else CASES:
        CASES[name](name)


if __name__ == "__main__":
    main()
