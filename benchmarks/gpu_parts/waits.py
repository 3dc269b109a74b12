"""Waits of the host for the device in five training steps, each with the line of this repository that waits."""

import tempfile
import traceback
import warnings
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_parts.bench import Bench
from benchmarks.gpu_parts.program import opened, recipe
from dist_train.data.batch import Batch
from dist_train.train.loop import Loop

STEPS, WARM = 5, 3
ROOT = Path(__file__).parents[2]
FORMS: dict[str, dict[str, Any]] = {
    "all classes": {},
    "half of the classes": {"head": {"sample_rate": 0.5}},
    "clipping": {"optimizer": {"lr": 0.01, "clip_norm": 5.0}},
    "two micro-batches": {"train": {"micro_batch_size": 16}},
}


def run(bench: Bench) -> None:
    """Count them, and see whether a step passes where each is an error."""
    with bench.path("gpu-waits.txt").open("w", encoding="utf-8") as report, tempfile.TemporaryDirectory() as name:
        for case, sections in FORMS.items():
            with bench.case(case):
                config = recipe(Path(name), **merged(sections))
                with opened(config, bench.device) as loop:
                    batches = [loop.next_batch() for _ in range(WARM + 2 * STEPS)]
                    train(loop, batches[:WARM])
                    found = waits(partial(train, loop, batches[WARM:-STEPS]))
                    refused = first_refused(partial(train, loop, batches[-STEPS:]))
                for stack, count in found.most_common():
                    report.write(f"{case}: {count} x\n{stack}\n\n")
                where: Counter[str] = Counter()
                for stack, count in found.items():
                    where[stack.splitlines()[-1]] += count
                ok, most = not found and refused is None, dict(where.most_common(12))
                bench.line(case, ok=ok, waits_a_step=sum(found.values()) / STEPS, where=most, first_refused=refused)


def train(loop: Loop, batches: list[Batch]) -> None:
    """Steps as the loop makes them between two that are logged."""
    for batch in batches:
        loop.meter.add(loop.train_step(batch))


def merged(sections: dict[str, Any]) -> dict[str, Any]:
    """The sections, with figures that are logged in no step that counts."""
    return sections | {"train": {"log_every": 1000} | sections.get("train", {})}


def waits(work: Any) -> Counter[str]:
    """How often `work` makes the host wait, by the stack of this repository's lines."""
    found: Counter[str] = Counter()

    def note(message: Any, *_: Any, **__: Any) -> None:
        if "called a synchronizing" in str(message):  # not the notice that the mode is a prototype
            found[stack_here()] += 1

    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    return found


def stack_here() -> str:
    """The lines of this repository that led here, without those of benchmarks."""
    frames = traceback.extract_stack()
    own = [each for each in frames if each.filename.startswith(str(ROOT)) and "gpu_parts" not in each.filename]
    lines = [f"{Path(each.filename).relative_to(ROOT)}:{each.lineno} {each.line}" for each in own]
    return "\n".join(lines) or "no line of this repository"


def first_refused(work: Any) -> str | None:
    """The first wait that `work` is refused, with its line; None: it makes none."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        work()
    except RuntimeError as error:
        frames = [each for each in traceback.extract_tb(error.__traceback__) if each.filename.startswith(str(ROOT))]
        last = frames[-1]
        return f"{Path(last.filename).relative_to(ROOT)}:{last.lineno} {last.line}: {str(error).splitlines()[0]}"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return None
