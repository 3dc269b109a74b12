"""Runs that start from a run: the cases `glyphs` and `faces` of benchmarks/start.py.

Both train by the command with its recipe. What a finished run found is not trained again: runs/start/ keeps it.
"""

import json
import pickle
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from command import headcount
from glyph_sets import GLYPHS, first_identities, names_of
from line import print_line

from dist_train.checkpoint.store import committed_checkpoints
from dist_train.config import RunConfig, load_config
from dist_train.data.loader import build_loader
from dist_train.data.manifest import MANIFEST_NAME, load_manifest
from dist_train.data.reader import ImageSet, SampleReader
from dist_train.run_files import CONFIG_NAME, SUMMARY_NAME
from dist_train.runtime.ranks import join_ranks, leave_ranks
from dist_train.train.build import open_training
from dist_train.train.recognition import Recognition

RUNS, SETS = Path("runs/start"), Path("data/start")

GLYPH_RECIPE = Path("configs/benchmark.yaml")
OLD_IDENTITIES = 16_000  # of 20,000: the labels follow the code points, so the new ones are of other scripts
LONG, SHORT = 7500, 1500  # steps
PAIRS = 6000
LOSS_BATCHES = 60

PHOTOS, LISTS, FACE_RECIPE = Path("lfw-deepfunneled.tar"), Path("lfw-meta"), Path("configs/lfw.yaml")
FEW, MANY = 2, 10  # photos that a person of the grown and of the first set has at least
FACE_STEPS = 300
SEEDS = (0, 1, 2)


def train(recipe: Path, run: Path, *overrides: str, ranks: int) -> dict[str, Any]:
    """The summary of a run, made by the command unless it is finished."""
    if not (run / SUMMARY_NAME).exists():
        resume = ["--resume"] if (run / CONFIG_NAME).exists() else []
        headcount("launch", "local", recipe, f"run_dir={run}", *overrides, "--ranks", str(ranks), *resume)
    found: dict[str, Any] = json.loads((run / SUMMARY_NAME).read_text(encoding="utf-8"))
    return found


def percent(value: float) -> float:
    """A share as percent, to two digits."""
    return round(100 * value, 2)


def glyphs(case: str) -> None:
    """16,000 identities for 7,500 steps, then 4,000 more for 1,500: beside as much training of all from nothing."""
    old_set, grown_set = SETS / "old", GLYPHS / "train"
    cut = _old_identities(grown_set, old_set)
    pairs = _old_pairs(GLYPHS / "heldout", SETS / "old.bin", cut)
    sets = f"evaluate.verification=[{GLYPHS / 'heldout' / 'verification.bin'},{pairs}]"
    old = train(GLYPH_RECIPE, RUNS / "old", f"data.path={old_set}", f"train.steps={LONG}", sets, ranks=2)
    starting = [f"start.from={RUNS / 'old'}", f"train.steps={SHORT}", sets]
    grown = train(GLYPH_RECIPE, RUNS / "grown", *starting, ranks=2)
    nothing = train(GLYPH_RECIPE, RUNS / "nothing", f"train.steps={SHORT}", sets, ranks=2)
    old_pairs = {run: _accuracy(RUNS / run, pairs) for run in ("old", "grown")}
    probe = f"run_dir={RUNS / 'probe'}"
    losses = {
        "last": _loss(
            load_config(RUNS / "old" / CONFIG_NAME, [probe]), committed_checkpoints(RUNS / "old")[-1], old_set
        ),
        "first": _loss(load_config(GLYPH_RECIPE, [probe, *starting]), None, old_set),
        # The same without the new rows, which are a quarter more classes in every softmax.
        "first_among_old": _loss(load_config(GLYPH_RECIPE, [probe, *starting, f"data.path={old_set}"]), None, old_set),
    }
    print_line(
        {
            "benchmark": "start",
            "case": case,
            "ours": percent(grown["verification_accuracy"]),
            "baseline": percent(nothing["verification_accuracy"]),
            "ratio": round((1 - nothing["verification_accuracy"]) / (1 - grown["verification_accuracy"]), 3),
            "unit": "% verification",
            "tar_at_far_1e-3": {
                "grown": percent(grown["tar_at_far"]["0.001"]),
                "nothing": percent(nothing["tar_at_far"]["0.001"]),
            },
            "old_scripts": {run: percent(value) for run, value in old_pairs.items()},
            "old_identities_loss": losses,
            "run": {"identities": [old["identities"], grown["identities"]], "steps": [LONG, SHORT], "ranks": 2},
        }
    )


def _old_identities(grown: Path, old: Path) -> str:
    """Write the set of the first identities; the name of the first one that is not in it."""
    first_identities(grown, old, OLD_IDENTITIES)
    return names_of(grown)[OLD_IDENTITIES]


def _old_pairs(heldout: Path, path: Path, cut: str) -> Path:
    """Write pairs of held-out characters before the name `cut`, half of them of one character."""
    if path.exists():
        return path
    names = names_of(heldout)
    manifest = load_manifest(heldout)
    reader = SampleReader([ImageSet(str(heldout), manifest)], "label", open_shards=1)
    pictures: dict[int, list[bytes]] = {}
    for number, shard in enumerate(manifest.shards):
        for sample in range(shard.samples):
            raw = reader.read(number, sample)
            if _code(names[raw.label]) < _code(cut):
                pictures.setdefault(raw.label, []).append(raw.image.tobytes())
    reader.close()
    random, labels = np.random.Generator(np.random.Philox(key=16)), sorted(pictures)
    images: list[bytes] = []
    for pair in range(PAIRS):
        one, other = (pictures[labels[k]] for k in random.choice(len(labels), 2, replace=False))
        if pair % 2 == 0:
            images += [one[k] for k in random.choice(len(one), 2, replace=False)]
        else:
            images += [kind[int(random.integers(len(kind)))] for kind in (one, other)]
    path.write_bytes(pickle.dumps((images, [pair % 2 == 0 for pair in range(PAIRS)]), protocol=4))
    return path


def _code(name: str) -> int:
    """The code point of a glyph's name, `U+4E00 ...`."""
    return int(name.split()[0][2:], 16)


def _accuracy(run: Path, pairs: Path) -> float:
    """Verification accuracy of a run on these pairs."""
    path = run / "old.json"
    headcount("eval", run, "--sets", pairs, "--no-flip", "--json", path)
    return float(json.loads(path.read_text(encoding="utf-8"))[0]["verification"][0]["accuracy"])


def _loss(config: RunConfig, checkpoint: Path | None, pictures: Path) -> float:
    """Mean loss of pictures of the old identities by what a run ended with, or, without a checkpoint, begins with."""
    config.run_dir.mkdir(parents=True, exist_ok=True)
    ranks = join_ranks("cpu", 2)
    loop = open_training(config, ranks, checkpoint)
    program = loop.program
    if not isinstance(program, Recognition):
        raise TypeError(f"{config.run_dir}: {type(program).__name__} has no head")
    data = config.data.model_copy(update={"path": str(pictures)})
    loader = build_loader(data, config.train.global_batch_size, rank=0, world_size=1, seed=1)
    backbone, losses = program.backbone.train(), []
    with torch.no_grad():
        for _ in range(LOSS_BATCHES):
            batch = next(loader)
            losses.append(float(program.head(backbone(batch.images), batch)))
    loader.close()
    loop.close()
    leave_ranks(ranks)
    return round(statistics.mean(losses), 4)


def faces(case: str) -> None:
    """View 1's people with ten photos or more, then all with two: beside as many steps from nothing, three seeds."""
    sets = {least: SETS / f"faces-{least}" for least in (MANY, FEW)}
    for least, path in sets.items():
        if not (path / MANIFEST_NAME).exists():
            people = LISTS / "peopleDevTrain.txt"
            own = ["--image-size", "64", "--identities", people, "--min-images", str(least)]
            headcount("prep", "align", PHOTOS, path, *own)
    pairs = SETS / "view1.bin"
    if not pairs.exists():
        headcount("prep", "align", PHOTOS, SETS / "faces")
        headcount("prep", "pairs", LISTS / "pairsDevTest.txt", SETS / "faces", pairs)
    common = [f"evaluate.verification=[{pairs}]", "train.epochs=null", "evaluate.every_steps=null"]
    found: dict[str, list[float]] = {"ten photos": [], "grown": [], "nothing": []}
    for seed in SEEDS:
        own = [*common, f"seed={seed}"]

        def run(name: str, least: int, steps: int, *more: str, own: list[str] = own, seed: int = seed) -> float:
            overrides = [*own, f"data.path={sets[least]}", f"train.steps={steps}", *more]
            folder = RUNS / f"faces-{name}-{seed}"
            return percent(train(FACE_RECIPE, folder, *overrides, ranks=1)["verification_accuracy"])

        found["ten photos"].append(run("ten", MANY, FACE_STEPS))
        found["grown"].append(run("grown", FEW, FACE_STEPS, f"start.from={RUNS / f'faces-ten-{seed}'}"))
        found["nothing"].append(run("nothing", FEW, FACE_STEPS))
    means = {name: round(statistics.mean(values), 2) for name, values in found.items()}
    print_line(
        {
            "benchmark": "start",
            "case": case,
            "ours": means["grown"],
            "baseline": means["nothing"],
            "ratio": round((100 - means["nothing"]) / (100 - means["grown"]), 3),
            "unit": "% verification",
            "seeds": found,
            "run": {"steps": FACE_STEPS, "seeds": len(SEEDS), "pairs": 1000},
        }
    )
