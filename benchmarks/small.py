"""Small models beside the one that they come from, a row each; and a large gallery in int8.

    python benchmarks/small.py                         # both cases, on runs/quickstart (make quickstart)
    python benchmarks/small.py --case models --run RUN --train SET --pairs FILE.bin --steps 1500
    python benchmarks/small.py --case gallery --rows 10000000

`models`: the run, its embedding of 80 % of the numbers, its network of 70 % of the channels after a training with the
run as the teacher, in PyTorch and onnxruntime, in int8 by rounding and by training: accuracy, TAR, parameters, FLOPs,
size, speed. What was made is kept in --work and not made again; the table is also written there as Markdown.
`gallery`: a search of int8 rows, and one by cells, beside one of the float32 rows, with the same queries.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from command import headcount
from grow import train
from line import print_line

from dist_train.checkpoint.load import load_backbone
from dist_train.embed.cells import Cells, write_cells
from dist_train.embed.compact import COMPACT_NAME, SCALES_NAME, CompactGallery, CompactWriter, Rows
from dist_train.embed.table import load_array, start_array
from dist_train.evaluate.search import nearest
from dist_train.prune.job import Size, size_of
from dist_train.run_files import CONFIG_NAME

EMBEDDING = 0.8  # share of its numbers that is kept
SHARE = 5  # a pruned network is trained for a fifth of the steps
FAR = "0.001"
BATCH = 32


@dataclass(frozen=True)
class Entry:
    """A row of the table.

    Attributes:
        name: for people.
        path: of the model.
        size: of the network.
    """

    name: str
    path: Path
    size: Size


def models(options: argparse.Namespace) -> None:
    """Make the models, judge and time them, and print a line for each."""
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    short, narrow, tuned = (work / name for name in ("short", "narrow", "tuned"))
    if not short.exists():
        headcount("prune", options.run, short, "--keep", str(EMBEDDING))
    if not narrow.exists():
        ways = ("--scope", "channels", "--by", "first-order", "--multiple", str(options.multiple))
        headcount("prune", options.run, narrow, "--keep", str(options.channels), *ways, "--set", options.train)
    steps = options.steps or max(1, load_backbone(options.run)[2].step // SHARE)
    start = (f"start.backbone={narrow}", f"start.head={options.run}", f"train.steps={steps}", "train.epochs=null")
    start += (
        "evaluate.verification=[]",
        "evaluate.identification=[]",
        "export.onnx=false",
    )  # judged below, with the rest
    teacher = f"objectives.distill={{teacher: {options.run}, weight: 10}}"
    train(narrow / CONFIG_NAME, tuned, *start, teacher, ranks=options.ranks)
    networks = {"as trained": options.run, "short embedding": short, "pruned, untrained": narrow, "pruned": tuned}
    sizes = {}
    for name, path in networks.items():
        network, _, progress = load_backbone(path)
        sizes[name] = size_of(network, progress.image_size)
    first = next(iter(networks))
    entries = [Entry(f"{first}, PyTorch", options.run, sizes[first])]
    for name, path in networks.items():
        file = work / f"{name.replace(', ', '-').replace(' ', '-')}.onnx"
        kinds = ["static", "trained"] if path in (options.run, tuned) else []
        if not file.with_name(f"{file.stem}.export.json").exists():  # which is written last
            words = [word for kind in kinds for word in ("--int8", kind)]
            words += ["--calibrate", options.train, "--steps", str(options.int8_steps)] if kinds else []
            headcount("export", path, "-o", file, *words)
        entries.append(Entry(f"{name}, onnxruntime", file, sizes[name]))
        for kind, ending in zip(kinds, ("int8", "int8-trained"), strict=False):
            entries.append(Entry(f"{name}, int8 {kind}", file.with_name(f"{file.stem}.{ending}.onnx"), sizes[name]))
    lines = judged(entries, options)
    for line in lines:
        print_line({"benchmark": "small", "case": line["model"]} | line)
    (work / "table.md").write_text(table(lines), encoding="utf-8")


def judged(entries: Sequence[Entry], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Accuracy and speed of each model, beside those of the first, and of the second: the same in onnxruntime."""
    paths = [each.path for each in entries]
    flip = [] if options.flip else ["--no-flip"]
    accuracy = options.work / "eval.json"
    if not accuracy.exists():
        headcount("eval", *paths, "--sets", options.pairs, "--json", accuracy, *flip)
    with tempfile.TemporaryDirectory() as name:
        speed = Path(name) / "bench.json"
        timed = ("--threads", "1", "--batch", "1", "--batch", str(BATCH), "--seconds", str(options.seconds))
        headcount("bench", *paths, *timed, "--json", speed)
        figures = json.loads(accuracy.read_text(encoding="utf-8"))
        timings = json.loads(speed.read_text(encoding="utf-8"))["timings"]
    scores = [model["verification"][0] for model in figures]
    lines: list[dict[str, Any]] = []
    for number, (entry, score) in enumerate(zip(entries, scores, strict=True)):
        one, many = ([each for each in timings if each["batch"] == batch][number] for batch in (1, BATCH))
        first = lines[0] if lines else None
        rate = many["images_per_s"]
        accuracy, tar = (100 * each for each in (score["accuracy"], score["tar_at_far"][FAR]))
        size = one["size_bytes"] or 4 * entry.size.parameters
        lines.append(
            {
                "model": entry.name,
                "ours": rate,
                "baseline": first["ours"] if first else rate,
                "ratio": round(rate / first["ours"], 2) if first else 1.0,
                "unit": f"images/s, one thread, batches of {BATCH}",
                "p50_ms_of_one": one["latency_ms"]["p50"],
                "accuracy": round(accuracy, 2),
                "tar": round(tar, 2),
                "accuracy_points": round(accuracy - first["accuracy"], 2) if first else 0.0,
                "tar_points": round(tar - first["tar"], 2) if first else 0.0,
                "over_onnxruntime": round(rate / lines[1]["ours"], 2) if number > 1 else None,
                "parameters": entry.size.parameters,
                "flops": entry.size.flops,
                "embedding_dim": entry.size.embedding_dim,
                "megabytes": round(size / 1e6, 2),
            }
        )
    return lines


def table(lines: Sequence[dict[str, Any]]) -> str:
    """The lines as a table of Markdown."""
    heads = [
        "model",
        "accuracy %",
        "TAR % at 1e-3",
        "parameters",
        "MFLOPs",
        "MB",
        "ms, one picture",
        "images/s",
        "speed",
        "over onnxruntime",
    ]
    rows = [
        [
            line["model"],
            f"{line['accuracy']:.2f}",
            f"{line['tar']:.2f}",
            f"{line['parameters']:,}",
            f"{line['flops'] / 1e6:.1f}",
            f"{line['megabytes']:.2f}",
            f"{line['p50_ms_of_one']:.2f}",
            f"{line['ours']:,.0f}",
            f"x{line['ratio']:.2f}",
            f"x{line['over_onnxruntime']:.2f}" if line["over_onnxruntime"] else "",
        ]
        for line in lines
    ]
    body = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in body)


def gallery(options: argparse.Namespace) -> None:
    """Search a gallery of made-up people, a few rows near each other for each, in int8, in cells, and in float32."""
    count, dim = options.rows, options.dim
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        home = Path(name)
        exact, described = _people(home, count, dim, options.each)
        rng = torch.Generator().manual_seed(1)
        chosen = torch.randint(0, count, (options.queries,), generator=rng)
        near = exact[chosen] + torch.randn(options.queries, dim, generator=rng) * options.noise / dim**0.5
        queries = torch.nn.functional.normalize(near)
        wanted = nearest(queries, exact, 10)[1]
        begin = time.perf_counter()
        nearest(queries[:1], exact, 10)
        float32 = time.perf_counter() - begin
        line = {"benchmark": "small", "baseline": round(float32, 4), "unit": "s, the first 10 of a query"}
        run = {"queries": options.queries, "threads": options.threads, "noise": options.noise, "each": options.each}
        compact = _searched(CompactGallery(home, described, exact), queries, wanted, options.timed, float32)
        read = sum((home / each).stat().st_size for each in (COMPACT_NAME, SCALES_NAME))
        extra = {"gigabytes": round(read / 1e9, 3), "error": described["error"], "run": run}
        print_line({**line, "case": f"gallery of {count} x {dim} in int8", **compact, **extra})
        begin = time.perf_counter()
        described = write_cells(home, exact.numpy(), quiet=True)
        extra = {"build_s": round(time.perf_counter() - begin, 1), **described, "run": run}
        cells = _searched(Cells(home, described, exact), queries, wanted, options.timed, float32)
        print_line({**line, "case": f"gallery of {count} x {dim} in cells", **cells, **extra})


def _searched(
    rows: CompactGallery | Cells, queries: torch.Tensor, wanted: torch.Tensor, timed: int, float32: float
) -> dict[str, Any]:
    """Seconds of a query alone, and how many queries have the first match that they should have."""
    rows.nearest(queries[:1], 10)  # the pages are in memory
    seconds = []
    for query in queries[:timed].split(1):
        begin = time.perf_counter()
        rows.nearest(query, 10)
        seconds.append(time.perf_counter() - begin)
    found = rows.nearest(queries, 10)[1]
    ours = statistics.median(seconds)
    return {
        "ours": round(ours, 4),
        "ratio": round(float32 / ours, 2),
        "same_first_match": int((found[:, 0] == wanted[:, 0]).sum()) / len(queries),
    }


def _people(home: Path, count: int, dim: int, each: int) -> tuple[torch.Tensor, dict[str, Any]]:
    """Unit rows float32 [count, dim] on disk, their int8 copies, and what describes these.

    `each` rows are of one person: a random direction of length 1 and, of the same length, a random one of their own, so
    that their cosines are about 0.5.
    """
    generator = np.random.default_rng(0)
    with ExitStack() as opened:
        writer = CompactWriter(home, Rows.int8, (count, dim), opened)
        file = opened.enter_context((home / "embeddings.npy").open("wb"))
        start_array(file, (count, dim), "<f4")
        for start in range(0, count, 1 << 16):
            some = min(1 << 16, count - start)
            people = generator.standard_normal((-(-some // each), dim), dtype=np.float32)
            rows = people.repeat(each, axis=0)[:some] + generator.standard_normal((some, dim), dtype=np.float32)
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
            writer.add(rows)
            file.write(rows.tobytes())
    return torch.from_numpy(load_array(home / "embeddings.npy", "c")), writer.described()


CASES: dict[str, Callable[[argparse.Namespace], None]] = {"models": models, "gallery": gallery}


def main() -> None:
    """Run one case or both."""
    data = Path("data/quickstart")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=sorted(CASES), help="only this case")
    parser.add_argument("--run", type=Path, default=Path("runs/quickstart"), help="a trained run")
    parser.add_argument("--train", type=Path, default=data / "train", help="the set that it was trained on")
    parser.add_argument("--pairs", type=Path, default=data / "heldout/verification.bin", help="set of pairs")
    parser.add_argument("--flip", action="store_true", help="add the mirrored picture's embedding, as for faces")
    parser.add_argument("--work", type=Path, default=Path("runs/small"), help="where the models are kept")
    parser.add_argument("--steps", type=int, help="of the training after pruning; a fifth of the run's by default")
    parser.add_argument("--int8-steps", type=int, default=500, help="of the training in int8")
    parser.add_argument("--ranks", type=int, default=2, help="of that training")
    parser.add_argument("--channels", type=float, default=0.7, help="share of the channels that is kept")
    parser.add_argument("--multiple", type=int, default=8, help="what a layer keeps is a multiple of it")
    parser.add_argument("--seconds", type=float, default=10, help="time for a model in a case of headcount bench")
    parser.add_argument("--rows", type=int, default=10_000_000, help="of the gallery")
    parser.add_argument("--dim", type=int, default=128, help="numbers of a row")
    parser.add_argument("--each", type=int, default=10, help="rows of a person of the gallery")
    parser.add_argument("--queries", type=int, default=1000, help="whose first matches are compared")
    parser.add_argument("--timed", type=int, default=20, help="queries that are timed, one by one")
    parser.add_argument("--noise", type=float, default=1.0, help="length of what is added to a row to make a query")
    parser.add_argument("--threads", type=int, default=2, help="of the gallery's search")
    parser.add_argument("--scratch", type=Path, help="folder with room for the gallery: 6.5 GB for 10 million rows")
    options = parser.parse_args()
    for name in [options.case] if options.case else CASES:
        CASES[name](options)


if __name__ == "__main__":
    main()
