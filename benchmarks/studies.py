"""What objectives, phases, transformers and pre-training do to accuracy: runs of the command on the glyph set.

A study is a table of runs, each under every seed, beside one of them as the baseline. What a finished run found is not
trained again: runs/objectives/ keeps it, so that a study goes on where it was stopped.
"""

import json
import pickle
import statistics
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
from glyph_sets import GLYPHS, first_identities
from grow import percent, train
from line import print_line
from numpy.typing import NDArray

from dist_train.evaluate.identification import evaluate_identification
from dist_train.evaluate.models import load_model
from dist_train.run_files import METRICS_NAME

RUNS, SETS = Path("runs/objectives"), Path("data/objectives")
TARGET_PAIRS = SETS / "target.bin"
RECIPE, VIT, CONTRAST = (Path(f"configs/{name}.yaml") for name in ("benchmark", "glyphs_vit_nano", "glyphs_contrast"))
SHORT, LONG = 1500, 7500  # steps
SEEDS = (0, 1, 2)
FEW = 1000  # labelled identities that follow a pre-training
TARGETS = 5000  # identities that the other domain has pictures of
PIXELS = 32

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Study:
    """Runs beside a baseline.

    Attributes:
        baseline: the run that the others are compared with.
        runs: by name, the overrides of each; `{runs}` stands for where runs are, `{seed}` for the seed.
        recipe: of all of them.
        recipes: by name, of those with another one.
        once: names of runs that are made under the first seed alone, e.g. a teacher.
        prepare: makes the sets that they need.
    """

    baseline: str
    runs: Mapping[str, tuple[str, ...]]
    recipe: Path = RECIPE
    recipes: Mapping[str, Path] = field(default_factory=dict)
    once: tuple[str, ...] = ()
    prepare: Callable[[], None] | None = None


def steps(count: int) -> str:
    """The override of a run's length."""
    return f"train.steps={count}"


def encoded(image: Any, change: Callable[[Pixels], Pixels]) -> bytes:
    """The bytes of a picture that is changed."""
    pixels = cast(Pixels, cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR))
    return bytes(cv2.imencode(".jpg", change(pixels), [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes())


def shifted(pixels: Pixels) -> Pixels:
    """The other domain: inverted contrast, of half the range, behind a strong blur."""
    blurred = cv2.GaussianBlur(255 - pixels, (0, 0), 1.5)
    return cast(Pixels, (blurred.astype(np.float32) * 0.5 + 32).astype(np.uint8))


def few_labelled() -> None:
    """Make the set of the first identities, which follows a pre-training on all pictures."""
    first_identities(GLYPHS / "train", SETS / "few", FEW)


def other_domain() -> None:
    """Make the other domain's set, of the first identities, and its pairs."""
    first_identities(GLYPHS / "train", SETS / "target", TARGETS, lambda raw: encoded(raw.image, shifted))
    if not TARGET_PAIRS.exists():
        images, same = pickle.loads((GLYPHS / "heldout" / "verification.bin").read_bytes())
        changed = [encoded(np.frombuffer(image, np.uint8), shifted) for image in images]
        TARGET_PAIRS.write_bytes(pickle.dumps((changed, same), protocol=4))


TARGET = f"path: {SETS / 'target'}, shared_labels: true"
UNLABELLED = f"data.mix=[{{{{path: {SETS / 'target'}, weight: 1, labelled: false}}}}]"
BOTH_PAIRS = f"evaluate.verification=[{GLYPHS / 'heldout' / 'verification.bin'},{TARGET_PAIRS}]"
BESIDE_ANOTHER = ("train.micro_batch_size=128", "train.threads=1")
"""Two runs of a rank each keep two cores busy better than two ranks that wait for each other; BatchNorm's statistics
are those of two ranks."""
KEPT = "checkpoint.every_steps=500"
SAMPLED = "head.sample_rate=0.1"
LAST_FIFTH = "phases=[{{at: 6000, head: {{sample_rate: 1.0}}}}]"

STUDIES: dict[str, Study] = {
    "distill": Study(
        "alone",
        {
            "teacher": ("backbone.name=tiny", steps(LONG)),
            "alone": (steps(SHORT),),
            "cosine": (steps(SHORT), "objectives.distill={{teacher: {runs}/teacher-0, weight: 10}}"),
            "soft labels": (
                steps(SHORT),
                "objectives.distill={{teacher: {runs}/teacher-0, cosine: 0, soft_labels: 1}}",
            ),
            "inherited": (steps(SHORT), "start.head={runs}/teacher-0", "start.freeze=[head]"),
            "inherited and cosine": (
                steps(SHORT),
                "start.head={runs}/teacher-0",
                "start.freeze=[head]",
                "objectives.distill={{teacher: {runs}/teacher-0, weight: 10}}",
            ),
        },
        once=("teacher",),
    ),
    "phases": Study(
        "sampled",
        {"sampled": (steps(LONG), SAMPLED), "full": (steps(LONG),), "phases": (steps(LONG), SAMPLED, LAST_FIFTH)},
    ),
    "metric": Study(
        "head alone",
        {
            "head alone": (steps(LONG), SAMPLED, "data.images_per_class=2"),
            **{
                name: (steps(LONG), SAMPLED, "data.images_per_class=2", f"objectives={{{{{kind}: {{{{{keys}}}}}}}}}")
                for name, kind, keys in (
                    ("triplet", "triplet", "weight: 1.0, warmup_steps: 500"),
                    ("supcon", "supcon", "weight: 1.0"),
                    ("sample to sample", "sample_to_sample", "weight: 0.1, scale: 16, lr_scale: 100"),
                    ("center", "center", "weight: 0.01, warmup_steps: 500"),
                )
            },
        },
    ),
    "contrast": Study(
        "from nothing",
        {
            "pre-trained": ("train.steps=7500", "evaluate.every_steps=2500"),
            "from nothing": (steps(SHORT), f"data.path={SETS / 'few'}", "backbone.embedding_dim=128"),
            "after pre-training": (
                steps(SHORT),
                f"data.path={SETS / 'few'}",
                "backbone.embedding_dim=128",
                "start.backbone={runs}/pre-trained-0",
            ),
        },
        recipes={"pre-trained": CONTRAST},
        once=("pre-trained",),
        prepare=few_labelled,
    ),
    "domains": Study(
        "source alone",
        {
            "source alone": (steps(SHORT), BOTH_PAIRS),
            **{
                f"labelled, {source} and {target}, {share} of a batch": (
                    steps(SHORT),
                    BOTH_PAIRS,
                    f"data.loss_weight={source}",
                    f"data.mix=[{{{{{TARGET}, weight: {weight}, loss_weight: {target}}}}}]",
                )
                for share, weight in (("half", 1), ("a fifth", 0.25))
                for source, target in ((0.7, 0.3), (0.5, 0.5))
            },
            "unlabelled, coral": (steps(SHORT), BOTH_PAIRS, UNLABELLED, "objectives={{coral: {{weight: 10}}}}"),
            "unlabelled, consistency": (
                steps(SHORT),
                BOTH_PAIRS,
                UNLABELLED,
                "objectives={{consistency: {{samples: unlabelled}}}}",
                "data.augment={{flip: 0, rotation: 10, crop: 0.8, contrast: 0.4, brightness: 0.4}}",
            ),
        },
        prepare=other_domain,
    ),
    "vit": Study(
        "convolutions", {"vit_nano": (steps(LONG),), "convolutions": (steps(LONG),)}, recipes={"vit_nano": VIT}
    ),
}


def study(case: str) -> None:
    """Make a study's runs and print a line for each but the baseline."""
    chosen = STUDIES[case]
    if chosen.prepare is not None:
        chosen.prepare()
    runs = RUNS / case

    def made(name: str, seed: int) -> dict[str, Any]:
        own = [override.format(runs=runs, seed=seed) for override in chosen.runs[name]]
        folder = runs / f"{name.replace(' ', '_')}-{seed}"
        alone = name in chosen.once
        summary = train(
            chosen.recipes.get(name, chosen.recipe),
            folder,
            *own,
            *([] if alone else BESIDE_ANOTHER),
            KEPT,
            f"seed={seed}",
            ranks=2 if alone else 1,
        )
        return summary | {"sets": by_set(folder)}

    found = {name: [made(name, SEEDS[0])] for name in chosen.once}  # others begin with what these give
    with ThreadPoolExecutor(2) as both:
        wanted = {name: [both.submit(made, name, seed) for seed in SEEDS] for name in chosen.runs if name not in found}
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
                    "overrides": list(chosen.runs[name]),
                    "baseline": chosen.baseline,
                    "ranks": 2 if name in chosen.once else 1,
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
    values = {name: [percent(measure(one)) for one in summaries] for name, measure in measures.items()}
    if len(summaries[0]["sets"]) > 1:
        values |= {name: [percent(one["sets"][name]) for one in summaries] for name in summaries[0]["sets"]}
    return {name: {"mean": round(statistics.mean(each), 2), "seeds": each} for name, each in values.items()}


def compatible(case: str) -> None:
    """An old model of few steps, a new one compatible with it, and a free one: their probes in the old gallery."""
    runs, heldout = RUNS / case, GLYPHS / "heldout"
    old = train(RECIPE, runs / "old", steps(SHORT), ranks=2)
    free = train(RECIPE, runs / "free", steps(LONG), "seed=1", ranks=2)
    overrides = [steps(LONG), "seed=1", f"objectives.compatible_with={{run: {runs / 'old'}}}"]
    new = train(RECIPE, runs / "compatible", *overrides, ranks=2)
    gallery, found = load_model(runs / "old", torch.device("cpu")), {}
    for name in ("compatible", "free"):
        probe = load_model(runs / name, torch.device("cpu"))
        result = evaluate_identification(probe.embed, heldout, PIXELS, 256, flip=False, gallery_embed_fn=gallery.embed)
        found[name] = percent(result.rank1)
    print_line(
        {
            "benchmark": "objectives",
            "case": case,
            "ours": found["compatible"],
            "baseline": percent(old["rank1"]),
            "ratio": round(found["compatible"] / percent(old["rank1"]), 3),
            "unit": "% rank-1 of new probes in the old gallery",
            "free_in_old_gallery": found["free"],
            "alone": {"compatible": percent(new["rank1"]), "free": percent(free["rank1"])},
            "run": {"steps": [SHORT, LONG], "ranks": 2},
        }
    )
