"""Where the time of a step of the head goes on a CPU: torch's profiler over one rank's share, by kind of work.

    python benchmarks/head_parts.py                         # half of a million identities at rate 0.1
    python benchmarks/head_parts.py --classes 50000 --rate 1

One rank, one thread, 128 embeddings of 512 numbers. One JSON line: milliseconds a step, and each part's share of them:
`products`; rows of tables `read` and `written` (gathered and scattered); `elementwise`: softmax, margins, norms and the
update; `copies`; `labels`: sampling and targets; `python`: the rest, Python and the dispatch of operators.
"""

import argparse
from collections import Counter

import torch
from line import print_line
from torch.profiler import ProfilerActivity, profile

from dist_train.head import Head, HeadConfig

DIM, SAMPLES, BATCHES = 512, 128, 4
# The first part one of whose names begins an operator's.
PARTS = {
    "products": ("mkldnn::", "aten::mm", "aten::addmm", "aten::bmm"),
    "read": ("aten::index_select",),
    "written": ("aten::index_copy_",),
    "elementwise": (
        *("aten::mul", "aten::exp", "aten::add", "aten::sub", "aten::div", "aten::sum", "aten::linalg_vector_norm"),
        *("aten::amax", "aten::log", "aten::sqrt", "aten::clamp", "aten::rsqrt", "aten::reciprocal", "aten::neg"),
    ),
    "copies": ("aten::copy_",),
    "labels": ("aten::scatter", "aten::index", "aten::_index", "aten::gather", "aten::sort"),
}
REST = "python"


def part_of(operator: str) -> str:
    """The part that an operator counts for."""
    return next((part for part, names in PARTS.items() if operator.startswith(names)), REST)


def main() -> None:
    """Profile, and print the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=500_000)
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = HeadConfig(sample_rate=options.rate)
    head = Head(config, options.classes, DIM, group=None, rank=0, world_size=1, device=torch.device("cpu"), seed=1)
    generator = torch.Generator().manual_seed(0)
    batches = [
        (
            torch.randn(SAMPLES, DIM, generator=generator).requires_grad_(),
            torch.randint(0, options.classes, (SAMPLES,), generator=generator),
        )
        for _ in range(BATCHES)
    ]

    def step(number: int) -> None:
        embeddings, labels = batches[number % BATCHES]
        head.prepare(labels)
        head(embeddings, labels).backward()
        head.step(1e-3)

    for number in range(BATCHES):
        step(number)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for number in range(options.steps):
            step(number)
    head.close()
    spent: Counter[str] = Counter()
    for each in seen.key_averages():
        spent[part_of(each.key)] += each.self_cpu_time_total / 1e3 / options.steps
    whole = spent.total()
    print_line(
        {
            "benchmark": "head",
            "case": f"parts, {options.classes:,} identities at rate {options.rate:g}",
            "ours": round(whole, 1),
            "baseline": round(spent["products"], 1),
            "ratio": round(whole / spent["products"], 3),
            "unit": "ms/step under the profiler; baseline is its products",
            "parts": {part: round(ms / whole, 3) for part, ms in spent.most_common()},
            "run": {"classes": options.classes, "sample_rate": options.rate, "steps": options.steps, "threads": 1},
        }
    )


if __name__ == "__main__":
    main()
