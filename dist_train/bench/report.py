"""The timings as a table, and as JSON."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dist_train.bench.rounds import PERCENTILES, Case, Timing
from dist_train.evaluate.tables import Cell, Table
from dist_train.runtime.version import version_of
from dist_train.runtime.written import write_failures, write_json


def timings_table(timings: Sequence[Timing], machine: dict[str, Any]) -> Table:
    """A row for each model in each case, beside the first model in the same case; the fastest is marked."""
    by_case: dict[Case, list[Timing]] = {}
    for each in timings:
        by_case.setdefault(each.case, []).append(each)
    rows = []
    for each in timings:
        latency, same = each.latency_ms(), by_case[each.case]
        ratio = each.images_per_s / same[0].images_per_s
        fastest = len(same) > 1 and each is max(same, key=lambda one: one.images_per_s)
        rows.append(
            [
                Cell(each.model),
                Cell(each.form),
                Cell(f"{each.size_bytes / 1e6:.2f} MB" if each.size_bytes else ""),
                Cell(str(each.case.threads)),
                Cell(str(each.case.batch)),
                *(Cell(f"{latency[p]:.2f}" if p in latency else "") for p in PERCENTILES),
                Cell(f"{each.images_per_s:,.1f}", best=fastest),
                Cell(f"x{ratio:.2f}"),
            ]
        )
    heads = ["model", "form", "size", "threads", "batch", *(f"p{p} ms" for p in PERCENTILES), "images/s", "to first"]
    calls = [len(each.seconds) for each in timings]
    notes = [
        f"On {machine['processor']}, {machine['cores']} cores, {', '.join(machine['instructions']) or 'plain'}"
        + (f"; PyTorch on {machine['gpu']}" if "gpu" in machine else "")
        + f". {min(calls)} to {max(calls)} calls each, models in turns; images/s by the median call.",
    ]
    if machine["load"] > 0.5:
        notes.append(f"The load was {machine['load']} when this began: the machine did other work, figures are low.")
    return Table("Speed", heads, rows, notes)


def write_timings(path: Path, timings: Sequence[Timing], machine: dict[str, Any]) -> None:
    """Write machine, versions and figures as JSON, by rename.

    Raises:
        WorkError: it cannot be written.
    """
    versions = {name: version_of(name) for name in ("torch", "onnxruntime")}
    body = {"machine": machine, "versions": versions, "timings": [each.to_json() for each in timings]}
    with write_failures(f"figures {path}"):
        write_json(path, body)
