"""What objectives, phases, transformers and pre-training do to accuracy: runs of the command on glyphs and on faces.

A study is a table of runs (study_tables.py), each under every seed, beside one of them as the baseline. What a finished
run found is not trained again: runs/objectives/ keeps it, so that a study goes on where it was stopped.
"""

import json
import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from glyph_sets import GLYPHS
from grow import percent, train
from line import print_line
from study_tables import KEPT, LONG, SHORT, STUDIES

from dist_train.evaluate.identification import evaluate_identification
from dist_train.evaluate.models import load_model
from dist_train.run_files import METRICS_NAME

RUNS = Path("runs/objectives")
SEEDS = (0, 1, 2)
PIXELS = 32


BESIDE_OTHERS = ("train.micro_batch_size=128", "train.threads=1")
"""Two runs of a rank each keep two cores busy better than two ranks that wait for each other; BatchNorm's statistics
are those of two ranks."""


class How(NamedTuple):
    """How a study's runs are made.

    Attributes:
        seeds: of each run.
        at_once: runs beside each other, each of one rank.
        overrides: of all runs, e.g. `train.device=cuda`.
    """

    seeds: tuple[int, ...] = SEEDS
    at_once: int = 2
    overrides: tuple[str, ...] = ()


class Job(NamedTuple):
    """One run of a study."""

    recipe: Path
    folder: Path
    overrides: tuple[str, ...]

    def made(self) -> dict[str, Any]:
        """The summary of the run, made unless it is finished, with its accuracy on each verification set."""
        summary = train(self.recipe, self.folder, *self.overrides, ranks=1)
        return summary | {"sets": by_set(self.folder)}


def job(case: str, name: str, seed: int, how: How) -> Job:
    """The run of this name and seed."""
    chosen, runs = STUDIES[case], RUNS / case
    own = [override.format(runs=runs, seed=seed) for override in chosen.runs[name]]
    beside = [each for each in BESIDE_OTHERS if each.split("=")[0] not in {one.split("=")[0] for one in own}]
    return Job(
        chosen.recipes.get(name, chosen.recipe),
        runs / f"{name.replace(' ', '_').replace(',', '')}-{seed}",
        (*beside, *own, KEPT, f"seed={seed}", *how.overrides),
    )


def study(case: str, how: How) -> None:
    """Make a study's runs and print a line for each but the baseline."""
    chosen = STUDIES[case]
    if chosen.prepare is not None:
        chosen.prepare()
    found = {name: [job(case, name, SEEDS[0], how).made()] for name in chosen.once}  # others begin with what these give
    with ThreadPoolExecutor(how.at_once) as pool:
        wanted = {
            name: [pool.submit(job(case, name, seed, how).made) for seed in how.seeds]
            for name in chosen.runs
            if name not in found
        }
        found |= {name: [each.result() for each in runs_of] for name, runs_of in wanted.items()}
    base = measured(found[chosen.baseline])
    for name, summaries in found.items():
        if name == chosen.baseline:
            continue
        ours = measured(summaries)
        print_line(
            {
                "benchmark": "objectives",
                "case": f"{case}: {name}",
                "ours": ours["tar_at_far_1e-3"]["mean"],
                "baseline": base["tar_at_far_1e-3"]["mean"],
                "ratio": round(ours["tar_at_far_1e-3"]["mean"] / base["tar_at_far_1e-3"]["mean"], 4),
                "unit": "% TAR at FAR 1e-3",
                "figures": ours,
                "baseline_figures": base,
                "run": {
                    "overrides": [*chosen.runs[name], *how.overrides],
                    "baseline": chosen.baseline,
                    "seeds": len(summaries),
                },
            }
        )


def by_set(run: Path) -> dict[str, float]:
    """Accuracy of a run's last evaluation on each of its verification sets."""
    lines = (json.loads(line) for line in (run / METRICS_NAME).read_text(encoding="utf-8").splitlines())
    last = [line for line in lines if "evaluate/score" in line][-1]
    found = {key: value for key, value in last.items() if key.startswith("evaluate/") and key.endswith("/accuracy")}
    return {key.split("/")[1]: value for key, value in found.items()}


def measured(summaries: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Percent over the seeds of a run: mean and each."""
    measures: dict[str, Callable[[dict[str, Any]], float]] = {
        "verification": lambda one: one["verification_accuracy"],
        "tar_at_far_1e-3": lambda one: one["tar_at_far"]["0.001"],
        "rank1": lambda one: one["rank1"],
    }
    if "rank1" not in summaries[0]:
        del measures["rank1"]
    values = {name: [percent(measure(one)) for one in summaries] for name, measure in measures.items()}
    if len(summaries[0]["sets"]) > 1:
        values |= {name: [percent(one["sets"][name]) for one in summaries] for name in summaries[0]["sets"]}
    return {name: {"mean": round(statistics.mean(each), 2), "seeds": each} for name, each in values.items()}


def compatible(case: str, how: How) -> None:
    """An old model of few steps, new ones compatible with it, and a free one: their probes in the old gallery."""
    heldout, host = GLYPHS / "heldout", torch.device("cpu")
    old = job(case, "old", SEEDS[0], how)
    before = old.made()
    jobs = {name: job(case, name, SEEDS[1], how) for name in STUDIES[case].runs if name != "old"}
    with ThreadPoolExecutor(how.at_once) as pool:
        alone = dict(zip(jobs, pool.map(Job.made, jobs.values()), strict=True))
    gallery, found = load_model(old.folder, host), {}
    for name, each in jobs.items():
        probe = load_model(each.folder, host)
        result = evaluate_identification(probe.embed, heldout, PIXELS, 256, flip=False, gallery_embed_fn=gallery.embed)
        found[name] = percent(result.rank1)
    for name in jobs:
        if name != STUDIES[case].baseline:
            print_line(
                {
                    "benchmark": "objectives",
                    "case": f"{case}: {name}",
                    "ours": found[name],
                    "baseline": percent(before["rank1"]),
                    "ratio": round(found[name] / percent(before["rank1"]), 3),
                    "unit": "% rank-1 of new probes in the old gallery",
                    "free_in_old_gallery": found["free"],
                    "alone": {one: percent(alone[one]["rank1"]) for one in (name, "free")},
                    "run": {"steps": [SHORT, LONG], "overrides": list(how.overrides)},
                }
            )
