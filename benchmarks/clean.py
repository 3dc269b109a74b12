"""Cleaning: faults that were planted in the glyph set, a million identities, and what training again brings.

`glyphs` plants the faults, embeds by the run that `--model` names, and counts what is found. `million` searches given
embeddings. `training` trains on the set with faults, looks through it with that very run, applies what it finds, and
trains again: beside a run on the set without faults.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from command import headcount
from glyph_sets import GLYPHS, first_identities
from grow import percent, train
from line import print_line
from planted import Truth, planted

from dist_train.clean.cores import find_cores
from dist_train.clean.duplicates import near_pairs
from dist_train.clean.merges import find_merges, joined
from dist_train.clean.neighbours import FAISS_ROWS
from dist_train.clean.outliers import Akin, find_outliers
from dist_train.runtime.ranks import ALONE

SETS, RUNS, RECIPE = Path("data/clean"), Path("runs/clean"), Path("configs/benchmark.yaml")
MILLION, VIEWS, DIM = 1_000_000, 2, 128


def glyphs(model: Path, classes: int, certainty: float | None) -> dict[str, Any]:
    """Faults found in the planted set, beside those that are there."""
    folder = SETS / f"planted-{classes}"
    truth = planted(GLYPHS / "train", folder, classes)
    begin = time.perf_counter()
    asked = [] if certainty is None else ["--certainty", str(certainty)]
    headcount("data", "clean", folder, "--model", model, "--out", SETS / f"found-{classes}", "--no-flip", *asked)
    found = counted(SETS / f"found-{classes}" / "findings.parquet", truth)
    return {
        "ours": found["outlier"]["recall"],
        "baseline": 90.0,
        "ratio": round(found["outlier"]["recall"] / 90, 3),
        "unit": "% of the wrong labels; baseline is the demand, at 95 % precision",
        "found": found,
        "seconds": round(time.perf_counter() - begin, 1),
        "run": {"identities": classes, "pictures": len(truth.label), "model": str(model), "certainty": certainty},
    }


def counted(path: Path, truth: Truth) -> dict[str, dict[str, float]]:
    """Precision and recall of each kind of finding, in percent."""
    rows = pq.read_table(path, columns=["kind", "rows", "labels"]).to_pylist()
    wrong = [row["rows"][0] for row in rows if row["kind"] == "outlier"]
    merges = [row["labels"] for row in rows if row["kind"] == "merge"]
    copies = {frozenset(row["rows"]) for row in rows if row["kind"] == "duplicate"}
    planted_copies = {frozenset((n, int(of))) for n, of in enumerate(truth.copy_of) if of >= 0}
    split = len(truth.owner) - int(truth.shown.max()) - 1
    one = sum(bool(truth.owner[left] == truth.owner[right]) for left, right in merges)
    return {
        "outlier": rates(int(truth.is_wrong[wrong].sum()), len(wrong), int(truth.is_wrong.sum())),
        "merge": rates(one, len(merges), split),
        "duplicate": rates(len(copies & planted_copies), len(copies), len(planted_copies)),
    }


def rates(right: int, found: int, there: int) -> dict[str, float]:
    """Precision and recall in percent, and the counts."""
    return {
        "precision": percent(right / max(found, 1)),
        "recall": percent(right / max(there, 1)),
        "found": found,
        "there": there,
    }


def million() -> dict[str, Any]:
    """A million identities of two pictures, whose embeddings are mapped from a file."""
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "embeddings.npy"
        rows = np.lib.format.open_memmap(path, "w+", np.float32, (MILLION * VIEWS, DIM))
        for start in range(0, MILLION, 10_000):
            centers = random.standard_normal((10_000, 1, DIM), np.float32)
            block = (centers + 0.7 * random.standard_normal((10_000, VIEWS, DIM), np.float32)).reshape(-1, DIM)
            block /= np.linalg.norm(block, axis=1, keepdims=True)
            rows[start * VIEWS : (start + 10_000) * VIEWS] = block
        labels = np.repeat(np.arange(MILLION), VIEWS)
        wrong = random.choice(len(labels), len(labels) // 1000, replace=False)
        labels[wrong] = random.integers(0, MILLION, len(wrong))
        rows.flush()
        del rows
        features = torch.from_numpy(np.load(path, mmap_mode="c"))
        begin = time.perf_counter()
        cores = find_cores(features, torch.from_numpy(labels), MILLION)
        merges = find_merges(features, cores, 0.98, None, ALONE)
        one = joined(merges.pairs[merges.found], MILLION)
        akin = Akin(merges.pairs[merges.distance <= merges.possible], one)
        outliers = find_outliers(features, cores, akin, 0.98, None, ALONE)
        near_pairs(features, cores, one, outliers, 0.9, ALONE)
        seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "ours": round(peak),
        "baseline": 4096,
        "ratio": round(4096 / peak, 3),
        "unit": "MB of resident memory at most; baseline is the demand",
        "seconds": round(seconds),
        "wrong": len(wrong),
        "found": len(outliers.found),
        "run": {"identities": MILLION, "pictures": len(labels), "dim": DIM, "faiss_above": FAISS_ROWS},
    }


def training(classes: int, steps: int, certainty: float | None) -> dict[str, Any]:
    """TAR of runs on the set without faults, with them, and as it was cleaned by the run with them."""
    name = "cleaned" if certainty is None else f"cleaned-{certainty}"
    folder, clean = SETS / f"planted-{classes}", SETS / f"{name}-{classes}"
    planted(GLYPHS / "train", folder, classes)
    without = first_identities(GLYPHS / "train", SETS / f"without-{classes}", classes)

    rank1: dict[str, float] = {}

    def tar(run: str, pictures: Path) -> float:
        """TAR in percent; rank-1 goes into `rank1`."""
        found = train(RECIPE, RUNS / run, f"data.path={pictures}", f"train.steps={steps}", ranks=2)
        rank1[run] = percent(found["rank1"])
        return percent(found["tar_at_far"]["0.001"])

    figures = {"without": tar("without", without), "faults": tar("faults", folder)}
    if not clean.exists():
        out = SETS / f"found-by-faults-{name}-{classes}"
        asked = [] if certainty is None else ["--certainty", str(certainty)]
        headcount("data", "clean", folder, "--model", RUNS / "faults", "--out", out, "--no-flip", *asked)
        headcount("data", "clean", folder, "--apply", out / "findings.parquet", clean)
    figures["cleaned"] = tar(name, clean)
    lost = figures["without"] - figures["faults"]
    regained = round(100 * (figures["cleaned"] - figures["faults"]) / lost, 1) if lost > 0 else 0.0
    return {
        "ours": regained,
        "baseline": 80.0,
        "ratio": round(regained / 80, 3),
        "unit": "% of the lost TAR at FAR 1e-3 that training again regains; baseline is the demand",
        "figures": figures,
        "rank1": rank1,
        "run": {"identities": classes, "steps": steps, "ranks": 2, "certainty": certainty},
    }


def main() -> None:
    """Run one case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=["glyphs", "million", "training"], default="glyphs")
    parser.add_argument("--model", type=Path, default=Path("runs/start/old"), help="run that embeds, of case glyphs")
    parser.add_argument("--identities", type=int, default=20_000)
    parser.add_argument("--steps", type=int, default=7500, help="of the runs of case training")
    parser.add_argument("--certainty", type=float, help="of cases glyphs and training; by default the command's own")
    asked = parser.parse_args()
    if asked.case == "glyphs":
        found = glyphs(asked.model, asked.identities, asked.certainty)
    elif asked.case == "million":
        found = million()
    else:
        found = training(asked.identities, asked.steps, asked.certainty)
    print_line({"benchmark": "clean", "case": asked.case, **found})


if __name__ == "__main__":
    main()
