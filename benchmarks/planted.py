"""A set with faults that are known: wrong labels, identities split in two, copies at a low quality."""

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from glyph_sets import Written, names_of, rewritten
from numpy.typing import NDArray

from dist_train.data.counters import Ints
from dist_train.data.manifest import load_manifest
from dist_train.data.shards import RawSample
from dist_train.evaluate.sets import StoredSet

WRONG, SPLIT, COPIED = 0.10, 0.05, 0.02  # shares of pictures, of identities, of pictures
COPY_QUALITY = 60  # of JPEG
_NOTHING = -1


class Truth(NamedTuple):
    """What is true of the samples of a planted set.

    Attributes:
        shown: whom each shows, as a label of the set without faults [N].
        label: that it was given [N].
        copy_of: number of the sample that it is a copy of, -1 for none [N].
        owner: whom a label belongs to [C]; a split identity has two labels.
    """

    shown: Ints
    label: Ints
    copy_of: Ints
    owner: Ints

    @property
    def is_wrong(self) -> NDArray[np.bool_]:
        """Whether a sample's label is not that of whom it shows [N]."""
        wrong: NDArray[np.bool_] = self.owner[self.label] != self.shown
        return wrong


def planted(source: Path, folder: Path, classes: int, seed: int = 0) -> Truth:
    """Write the first identities of `source` with faults, once, and say which they are.

    Half of the copies have the label of their picture, half another.
    """
    truth_path = folder / "truth.npz"
    if not truth_path.exists():
        truth = _write(source, folder, classes, seed)
        np.savez(truth_path, **truth._asdict())
    with np.load(truth_path) as file:
        return Truth(**{name: file[name] for name in Truth._fields})


def _write(source: Path, folder: Path, classes: int, seed: int) -> Truth:
    random = np.random.default_rng(seed)
    names = names_of(source)[:classes]
    halved = np.sort(random.choice(classes, round(SPLIT * classes), replace=False))
    second = np.full(classes, _NOTHING)  # label of the other half
    second[halved] = classes + np.arange(len(halved))
    owner = np.concatenate([np.arange(classes), halved])
    with StoredSet(source) as samples:
        labels, _ = samples.labels_and_roles()
    labels = labels[labels < classes]
    seen: list[tuple[int, int, int]] = []

    def another(label: int) -> int:
        while owner[other := int(random.integers(len(owner)))] == label:
            pass
        return other

    # Exactly half of a split identity's pictures go to each label.
    at = np.empty(len(labels), dtype=np.int64)
    order = np.lexsort((random.random(len(labels)), labels))
    starts = np.searchsorted(labels[order], labels[order], side="left")
    at[order] = np.arange(len(labels)) - starts
    counts = np.bincount(labels, minlength=classes)
    number = iter(range(len(labels)))

    def change(raw: RawSample) -> list[Written]:
        if raw.label >= classes:
            return []
        one, label = next(number), raw.label
        if second[label] != _NOTHING and 2 * at[one] >= counts[label]:
            label = int(second[label])
        if random.random() < WRONG:
            label = another(raw.label)
        written = [Written(raw.key, raw.image.tobytes(), label)]
        seen.append((raw.label, label, _NOTHING))
        if random.random() < COPIED:
            seen.append((raw.label, label if random.random() < 0.5 else another(raw.label), len(seen) - 1))
            written.append(Written(f"{raw.key}-copy", _at_low_quality(raw.image), seen[-1][1]))
        return written

    rewritten(source, folder, [*names, *(f"{names[label]} again" for label in halved)], change)
    shown, label, copy_of = np.array(seen).T
    if load_manifest(folder).samples != len(seen):
        raise RuntimeError(f"{folder}: left from a start that was stopped; remove it")
    return Truth(shown, label, copy_of, owner)


def _at_low_quality(image: NDArray[np.uint8]) -> bytes:
    pixels = cv2.imdecode(image, cv2.IMREAD_UNCHANGED)
    return bytes(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, COPY_QUALITY])[1].tobytes())
