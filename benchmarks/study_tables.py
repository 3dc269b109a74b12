"""The tables of runs that benchmarks/studies.py makes: which overrides each run has, and the sets that they need."""

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
from glyph_sets import GLYPHS, first_identities
from numpy.typing import NDArray

SETS = Path("data/objectives")
TARGET_PAIRS = SETS / "target.bin"
RECIPE, VIT, CONTRAST, FACES = (
    Path(f"configs/{name}.yaml") for name in ("benchmark", "glyphs_vit_nano", "glyphs_contrast", "lfw")
)
SHORT, LONG = 1500, 7500  # steps
FACE_STEPS = 1872  # 36 epochs of configs/lfw.yaml
FEW = 1000  # labelled identities that follow a pre-training
TARGETS = 5000  # identities that the other domain has pictures of

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
KEPT = "checkpoint.every_steps=500"
SAMPLED = "head.sample_rate=0.1"
PAIRS = "data.images_per_class=2"
FROM_FEW = (steps(SHORT), f"data.path={SETS / 'few'}", "backbone.embedding_dim=128")
FACE = (f"train.steps={FACE_STEPS}", "train.epochs=null", "evaluate.every_steps=null", "data.workers=0")


def last_fifth(more: str = "", head: str = "") -> str:
    """The override of a second phase from step 6,000 on, over all classes."""
    return f"phases=[{{{{at: 6000, head: {{{{sample_rate: 1.0{head}}}}}{more}}}}}]"


def term(kind: str, keys: str) -> tuple[str, ...]:
    """The overrides of one objective beside the head, in batches that have pairs."""
    return PAIRS, f"objectives={{{{{kind}: {{{{{keys}}}}}}}}}"


def two_domains(source: float, target: float, weight: float, batch: int = 256, length: int = SHORT) -> tuple[str, ...]:
    """The overrides of a labelled second domain: the losses' weights, and how much of a batch is its own."""
    mix = f"{TARGET}, weight: {weight}, loss_weight: {target}"
    micro = () if batch == 256 else (f"train.global_batch_size={batch}", f"train.micro_batch_size={batch // 2}")
    return (steps(length), BOTH_PAIRS, f"data.loss_weight={source}", f"data.mix=[{{{{{mix}}}}}]", *micro)


SHORTLY = (steps(SHORT), BOTH_PAIRS)

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
        {
            "sampled": (steps(LONG), SAMPLED),
            "full": (steps(LONG),),
            "phases": (steps(LONG), SAMPLED, last_fifth()),
            "phases, the rate doubled": (steps(LONG), SAMPLED, last_fifth(", optimizer: {{lr: 0.0008}}")),
            "phases, three times the rate of the head": (steps(LONG), SAMPLED, last_fifth(head=", lr_scale: 225")),
        },
    ),
    "rowwise": Study(
        "momentum",
        {
            "momentum": (steps(LONG),),
            **{
                f"row-wise, {scale}": (
                    steps(LONG),
                    "head.optimizer=rowwise_adagrad",
                    f"head.lr_scale={scale}",
                )
                for scale in (2, 4, 7.5, 15, 30)
            },
        },
    ),
    "metric": Study(
        "head alone",
        {
            "head alone": (steps(LONG), SAMPLED, PAIRS),
            **{
                name: (steps(LONG), SAMPLED, *term(kind, keys))
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
            "pre-trained": ("train.micro_batch_size=512",),
            "from nothing": FROM_FEW,
            "after pre-training": (*FROM_FEW, "start.backbone={runs}/pre-trained-0"),
        },
        recipes={"pre-trained": CONTRAST},
        once=("pre-trained",),
        prepare=few_labelled,
    ),
    "compatible": Study(
        "free",
        {
            "old": (steps(SHORT),),
            "free": (steps(LONG),),
            **{
                f"weight {weight}": (
                    steps(LONG),
                    f"objectives.compatible_with={{{{run: {{runs}}/old-0, weight: {weight}}}}}",
                )
                for weight in (0.25, 0.5, 1)
            },
        },
        once=("old",),
    ),
    "domains": Study(
        "source alone",
        {
            "source alone": SHORTLY,
            **{
                f"labelled, {source} and {target}, {share}": two_domains(source, target, weight, batch)
                for share, weight, batch in (
                    ("half of a batch", 1, 256),
                    ("a fifth of a batch", 0.25, 256),
                    ("64 pictures more a batch", 0.25, 320),
                )
                for source, target in ((0.7, 0.3), (0.5, 0.5))
            },
            "unlabelled, coral": (*SHORTLY, UNLABELLED, "objectives={{coral: {{weight: 10}}}}"),
            "unlabelled, consistency": (
                *SHORTLY,
                UNLABELLED,
                "objectives={{consistency: {{samples: unlabelled}}}}",
                "data.augment={{flip: 0, rotation: 10, crop: 0.8, contrast: 0.4, brightness: 0.4}}",
            ),
        },
        prepare=other_domain,
    ),
    "domains-long": Study(
        "source alone",
        {
            "source alone": (steps(LONG), BOTH_PAIRS),
            "labelled, 0.7 and 0.3, 64 pictures more a batch": (
                *two_domains(0.7, 0.3, 0.25, 320, LONG),
                "head.lr_scale=107",  # 75 / 0.7: by SGD, rows follow the source as fast as without the target
            ),
        },
        prepare=other_domain,
    ),
    "vit": Study("convolutions", {"vit_nano": (), "convolutions": (steps(4000),)}, recipes={"vit_nano": VIT}),
    "faces": Study(
        "head alone",
        {
            "head alone": FACE,
            "pairs": (*FACE, PAIRS),
            **{
                name: (*FACE, *term(kind, keys))
                for name, kind, keys in (
                    ("triplet", "triplet", "weight: 1.0, warmup_steps: 100"),
                    ("supcon", "supcon", "weight: 1.0"),
                    ("sample to sample", "sample_to_sample", "weight: 0.1"),
                    ("center", "center", "weight: 0.01, warmup_steps: 100"),
                )
            },
        },
        recipe=FACES,
    ),
}
