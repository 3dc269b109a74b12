"""A directory of tars that others wrote becomes a set: size of its pictures, number of classes, what cannot be used."""

import logging
import os
from collections import Counter
from pathlib import Path

from dist_train.data.foreign import write_index
from dist_train.data.manifest import MANIFEST_NAME, MAX_CLASSES, Manifest, Shard, load_manifest
from dist_train.data.opencv import MOST_ENLARGED, check_square
from dist_train.data.shards import BadSampleError, OpenShard
from dist_train.data.tar_folder import refuse_other_inputs, tars_in
from dist_train.data.tar_samples import Sample, parts_of, same_key
from dist_train.errors import UserError
from dist_train.runtime.digest import sha256_of
from dist_train.runtime.lock import Lock
from dist_train.runtime.progress import progress_bar

log = logging.getLogger(__name__)

_LOCK_S = 3600.0  # an hour: another process may be reading a large set for its first manifest
_SPARSEST = 100  # classes per sample, above which a label is an accident
_ALWAYS = 24  # bits that a label may have in any set: 16.8 million classes
_SHOWN = 3  # examples in a message


def _way_out(directory: Path) -> str:
    """What to do about a directory that is no set: name the sets below it, or make one."""
    below = sorted(path.parent.name for path in directory.glob(f"*/{MANIFEST_NAME}"))
    if below:
        return (
            f"there are sets below it, give one of them: {', '.join(str(directory / name) for name in below[:_SHOWN])}"
        )
    return "make a set with `headcount prep`, or correct data.path"


def adopt_set(directory: Path, label_key: str) -> Manifest:
    """Index the tars in `directory` and write a manifest for them, once; other processes wait for the one that does.

    Raises:
        UserError: no tars, further input beside them, two tars of one index, two pictures of one key, no sample that
            can be used, or a directory that cannot be written.
    """
    tars = tars_in(directory)
    if not tars:
        raise UserError(f"dataset {directory}: neither {MANIFEST_NAME} nor *.tar in it; {_way_out(directory)}")
    refuse_other_inputs(directory, photos=False)
    by_stem: dict[str, Path] = {}
    for tar in tars:
        if (other := by_stem.setdefault(tar.stem, tar)) is not tar:
            raise UserError(
                f"dataset {directory}: {other.name} and {tar.name} would share the index {tar.stem}.idx; rename one"
            )
    if not os.access(directory, os.W_OK):
        raise UserError(f"dataset {directory}: no {MANIFEST_NAME}, and no right to write one; copy or link the shards")
    with Lock(directory / ".manifest.lock", _LOCK_S):
        if (directory / MANIFEST_NAME).exists():
            return load_manifest(directory)
        manifest = _survey(tars, label_key)
        manifest.save(directory)
        return manifest


def _survey(tars: list[Path], label_key: str) -> Manifest:
    """Index `tars` and read every label and the head of every picture.

    The size of the set is that of most of its pictures. What cannot be used is counted and named in the log.

    Raises:
        UserError: two pictures of one key in a tar, or no sample that can be used.
    """
    tally = _Tally()
    shards = []
    for tar in progress_bar(tars, desc="first use: indexing", unit="shard"):
        index = tar.with_suffix(".idx")
        samples = write_index(tar, index).samples
        _refuse_same_keys(tar, samples)
        shards.append(Shard(tar.name, len(samples), tar.stat().st_size, sha256_of(tar)))
        if not samples:
            continue
        opened = OpenShard(tar, index, shards[-1])
        for number in range(len(samples)):
            tally.add(opened, number, label_key)
        opened.close()
    folder = tars[0].parent
    side, classes = tally.side, tally.classes
    tally.told(folder, side)
    if not side or not classes:
        reason = tally.examples[0] if tally.examples else "no samples"
        raise UserError(
            f"dataset {folder}: no sample with a square picture and a label in {len(tars)} tars, e.g. "
            f"{reason}; labels are .cls files or data.label_key={label_key} in .json files"
        )
    return Manifest(side, classes, tuple(shards), label_key if tally.by_record else None)


class _Tally:
    """What was found in samples: memory does not grow with their number."""

    def __init__(self) -> None:
        self.samples = self.bad = 0
        self.by_record = False  # whether labels are from .json files
        self.sides: Counter[int] = Counter()
        self.examples: list[str] = []  # of bad samples
        # Largest label, samples and an example by the number of the label's bits: how far labels may go is known last.
        self._labels: dict[int, tuple[int, int, str]] = {}

    def add(self, shard: OpenShard, number: int, label_key: str) -> None:
        """Look at a sample."""
        self.samples += 1
        place = f"{shard.key(number)} in {shard.path.name}"
        try:
            raw = shard.read(number, label_key)
            side = check_square(raw.image).width
        except BadSampleError as error:
            self._note(f"{place}: {error}")
            return
        self.sides[side] += 1
        self.by_record |= all(member.extension != "cls" for member in shard.members(number))
        bits = raw.label.bit_length()
        largest, count, example = self._labels.get(bits, (-1, 0, ""))
        if raw.label > largest:
            largest, example = raw.label, f"{place}: label {raw.label}"
        self._labels[bits] = largest, count + 1, example

    @property
    def side(self) -> int:
        """Side of most pictures in pixels, of the larger ones among equals; 0 for no pictures."""
        return max(self.sides, key=lambda side: (self.sides[side], side), default=0)

    @property
    def classes(self) -> int:
        """Number of classes, without labels out of all range."""
        return 1 + max((label for bits, (label, _, _) in self._labels.items() if bits <= self._most_bits), default=-1)

    @property
    def _most_bits(self) -> int:
        wanted = (_SPARSEST * self.samples).bit_length()
        return min(max(_ALWAYS, wanted), (MAX_CLASSES - 1).bit_length())

    def told(self, folder: Path, side: int) -> None:
        """Log what cannot be used, and what is scaled."""
        for bits, (_, count, example) in self._labels.items():
            if bits > self._most_bits:
                self._note(f"{example} is out of all range for {self.samples:,} samples", count)
        for small in [small for small in self.sides if small * MOST_ENLARGED < side]:
            self._note(f"pictures of {small}x{small} pixels in a set of {side}x{side}", self.sides.pop(small))
        if self.bad:
            log.warning(
                "dataset %s: %d of %d samples cannot be used, e.g. %s; `headcount data verify` lists them",
                folder, self.bad, self.samples, "; ".join(self.examples),
            )  # fmt: skip
        others = Counter({other: count for other, count in self.sides.items() if other != side})
        if others:
            told = ", ".join(f"{count:,} of {other}x{other}" for other, count in others.most_common(_SHOWN))
            log.warning(
                "dataset %s: %d of %d pictures are not of %dx%d pixels and are scaled to it (%s%s)",
                folder, others.total(), self.samples, side, side, told, ", ..." if len(others) > _SHOWN else "",
            )  # fmt: skip

    def _note(self, example: str, count: int = 1) -> None:
        self.bad += count
        if len(self.examples) < _SHOWN:
            self.examples.append(example)


def _refuse_same_keys(tar: Path, samples: list[Sample]) -> None:
    first: dict[tuple[int, str], Sample] = {}
    for sample in samples:
        clash = parts_of(sample.members).clash
        before = first.setdefault((sample.archive, sample.key), sample)
        if before is not sample:
            clash = before.members[0], sample.members[0]
        if clash:
            raise UserError(
                f"dataset {tar.parent}: {tar.name}: {same_key(*clash)}, and nobody can say whose label is whose; write "
                "the tar again with other names, or the photos as a set by `headcount prep align`"
            )
