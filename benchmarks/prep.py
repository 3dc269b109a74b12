"""Jobs without detection: an InsightFace `.rec` to shards, and the planning of very long lists.

    python benchmarks/prep.py                                        # all cases
    python benchmarks/prep.py --case rec --images 2000               # smaller than for the record

`rec`: the command `headcount prep align --keep` with one worker, its start and its report included, beside a plain copy
of the same bytes to the same disk. `rec_workers`: the same with two workers, beside one. `plan_10m`: a table of ten
million paths to a stored plan, in a process of its own; of the command, the part that depends on the length of a list.
One JSON line a case.
"""

import argparse
import importlib.metadata
import json
import logging
import os
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from command import headcount
from line import print_line
from pictures import SIDE, jpeg

from data_prep.job.plan import JobFiles, JobOptions, make_plan
from data_prep.sources.tables import TableSource
from data_prep.transforms import Keep
from dist_train.data.manifest import load_manifest

DISTINCT, ROUNDS = 256, 2
CORES = len(os.sched_getaffinity(0))


def write_rec(path: Path, images: int) -> None:
    """A `.rec` with its `.idx`, 30 pictures an identity; a number behind each JPEG's end makes its bytes unique."""
    made = [jpeg(number) for number in range(DISTINCT)]
    lines, offset = [], 0
    with path.open("wb") as file:
        for number in range(images):
            picture = made[number % DISTINCT] + struct.pack("<Q", number)
            body = struct.pack("<IfQQ", 0, float(number // 30), number, 0) + picture
            body = struct.pack("<II", 0xCED7230A, len(body)) + body + bytes(-len(body) % 4)
            file.write(body)
            lines.append(f"{number}\t{offset}\n")
            offset += len(body)
    path.with_suffix(".idx").write_text("".join(lines), encoding="ascii")


def job_rate(rec: Path, images: int, workers: int) -> float:
    """Images a second of `headcount prep align REC OUT --keep`, its start and its report included."""
    with tempfile.TemporaryDirectory(dir=rec.parent) as name:
        options = ["--keep", "--image-size", str(SIDE), "--workers", str(workers)]
        took = headcount("prep", "align", rec, name, *options).seconds
        arrived = load_manifest(Path(name)).samples
    if arrived != images:
        raise RuntimeError(f"{arrived} pictures of {images} arrived")
    return images / took


def copy_rate(rec: Path, images: int) -> float:
    """Images a second of a plain copy that reaches the disk."""
    target = rec.with_name("copy")
    begin = time.perf_counter()
    with rec.open("rb") as source, target.open("wb") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)
        sink.flush()
        os.fsync(sink.fileno())
    took = time.perf_counter() - begin
    target.unlink()
    return images / took


def rec(case: str, images: int, _: int) -> None:
    """One worker beside a plain copy; the best of `ROUNDS` each, in turn."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "train.rec"
        write_rec(path, images)
        size = path.stat().st_size
        ours, copy = zip(*((job_rate(path, images, 1), copy_rate(path, images)) for _ in range(ROUNDS)), strict=True)
    emit(
        case,
        round(max(ours)),
        round(max(copy)),
        "images/s",
        ratio=round(max(ours) / max(copy), 3),
        peak_rss_mb=children_peak_mb(),
        run={"images": images, "rec_mb": round(size / 1e6), "workers": 1, "baseline": "plain copy", "wanted": 5000},
    )


def rec_workers(case: str, images: int, _: int) -> None:
    """Two workers beside one, in turn."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "train.rec"
        write_rec(path, images)
        one, two = zip(*((job_rate(path, images, 1), job_rate(path, images, 2)) for _ in range(ROUNDS)), strict=True)
    emit(
        case,
        round(max(two)),
        round(max(one)),
        "images/s",
        ratio=round(max(two) / max(one), 3),
        peak_rss_mb=children_peak_mb(),
        run={"images": images, "workers": [2, 1], "baseline": "one worker", "wanted": 1.8},
    )


def plan_10m(case: str, _: int, rows: int) -> None:
    """Seconds and memory to plan a job over a table of `rows` paths."""
    with tempfile.TemporaryDirectory() as name:
        table = Path(name) / "people.csv"
        with table.open("w", encoding="ascii") as file:
            file.write("path,identity\n")
            file.writelines(
                f"photos/{n // 20:07d}/{n % 20:04d}-{n:09d}.jpg,person {n // 20:07d}\n" for n in range(rows)
            )
        begin = time.perf_counter()
        command = [sys.executable, __file__, "--plan", str(table), str(Path(name) / "out")]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        whole_s = time.perf_counter() - begin
    emit(
        case,
        round(found["seconds"], 2),
        None,
        "s",
        peak_rss_mb=round(found["peak_rss_mb"]),
        run={
            "rows": rows,
            "units": found["units"],
            "source": "csv",
            "cpu_s": round(found["cpu_s"], 1),
            "with_start_of_python_s": round(whole_s, 1),
            "wanted": {"s": 60, "peak_rss_mb": 1000},
        },
    )


def plan_table(table: Path, out: Path) -> None:
    """In a process of its own: plan, print what it took."""
    options = JobOptions(source=TableSource(path=table), transform=Keep())
    begin, cpu = time.perf_counter(), time.process_time()
    plan = make_plan(JobFiles(out), options)
    seconds, cpu_s = time.perf_counter() - begin, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    print(json.dumps({"seconds": seconds, "cpu_s": cpu_s, "peak_rss_mb": peak, "units": plan.units}))


def children_peak_mb() -> int:
    """Highest resident memory of any worker that has ended."""
    return round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6)


def emit(case: str, ours: float, baseline: float | None, unit: str, **more: Any) -> None:
    """Print a case's line."""
    line = {"benchmark": "prep", "case": case, "ours": ours, "baseline": baseline, "unit": unit, **more, "cores": CORES}
    versions = {package: importlib.metadata.version(package) for package in ("pyarrow", "opencv-python-headless")}
    print_line(line | {"versions": versions})


CASES: dict[str, Callable[[str, int, int], None]] = {"rec": rec, "rec_workers": rec_workers, "plan_10m": plan_10m}


def main() -> None:
    """Run one case or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=sorted(CASES), help="only this case")
    parser.add_argument("--images", type=int, default=300_000, help="in the .rec")
    parser.add_argument("--rows", type=int, default=10_000_000, help="of the table")
    parser.add_argument("--plan", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plan:
        plan_table(*options.plan)
        return
    for name in [options.case] if options.case else CASES:
        CASES[name](name, options.images, options.rows)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    main()
