"""A shard of a set becomes a shard of each part: pictures and all that is beside them with the bytes that they have.

What changes is the label, and in the held-out part the record: it says if a picture is the gallery's or a probe.
"""

from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import TypeAdapter

from data_prep.merge.move import contents_of, open_shard
from data_prep.merge.relabel import relabelled
from data_prep.shards import ShardWriter
from data_prep.split.choice import place
from data_prep.split.files import HELDOUT, TRAIN, SplitFiles
from data_prep.split.survey import read_rows
from dist_train.data.counters import Ints
from dist_train.data.manifest import Shard
from dist_train.data.shards import BadSampleError
from dist_train.data.tar_samples import Sample, key_of
from dist_train.errors import WorkError
from dist_train.evaluate.sets import ROLES
from dist_train.runtime.files import map_array, read_bounded
from dist_train.runtime.written import write_failures, write_json

_MOST_MARK_BYTES = 1 << 20
_WAY_OUT = "get the shard again, or write the set again"


class Parted(NamedTuple):
    """The mark of a shard that was parted: what it gave to each part, possibly no sample.

    Attributes:
        train: shard of the part to train on.
        heldout: shard of the part that is held out.
    """

    train: Shard
    heldout: Shard


_PARTED = TypeAdapter(Parted)


class PartShard:
    """Parts a set's shards by their numbers, as `SplitFiles` say who is held out; the task of an engine.

    Args:
        files: of the split.
        folder: of the set.
        shards: of the set.
        label_key: key of the label in samples that have no `.cls`.
    """

    def __init__(self, files: SplitFiles, folder: Path, shards: Sequence[Shard], label_key: str) -> None:
        self._files, self._folder, self._shards, self._label_key = files, folder, shards, label_key

    def __call__(self, unit: int) -> dict[str, Any]:
        """Part shard `unit`; its mark.

        Raises:
            WorkError: the shard is not what its manifest says, or the disk failed.
        """
        shard = self._shards[unit]
        tar = self._folder / shard.name
        try:
            mismatch = shard.mismatch(tar)
        except OSError as error:
            raise WorkError(f"{tar}: {error.strerror}") from error
        if mismatch:
            raise WorkError(f"{tar}: {mismatch}; {_WAY_OUT}")
        with write_failures(f"parts of {tar}"):
            parted = self._write(unit, tar)
            body: dict[str, Any] = _PARTED.dump_python(parted, mode="json")
            write_json(self._files.parted(unit), body)
        return {TRAIN: parted.train, HELDOUT: parted.heldout}

    def finished(self, unit: int) -> Parted | None:
        """What was written before, if both shards are there as the mark says."""
        try:
            parted = _PARTED.validate_json(read_bounded(self._files.parted(unit), _MOST_MARK_BYTES))
            for name, shard in zip((TRAIN, HELDOUT), parted, strict=True):
                tar = self._files.shard(name, unit)
                if shard.name != tar.name or (shard.samples and shard.mismatch(tar)):
                    return None
        except (OSError, ValueError):
            return None
        return parted

    def _write(self, unit: int, tar: Path) -> Parted:
        rows = read_rows(self._files, unit, self._shards[unit])
        labels: Ints = map_array(self._files.labels, "r")
        is_held = map_array(self._files.heldout, "r")
        gallery = _gallery_numbers(map_array(self._files.gallery, "r"), unit)
        paths = [self._files.shard(name, unit) for name in (TRAIN, HELDOUT)]
        with ExitStack() as stack:
            opened = stack.enter_context(closing(open_shard(tar, self._files.index(unit), self._shards[unit])))
            source = stack.enter_context(tar.open("rb", buffering=0))
            writers = [stack.enter_context(ShardWriter(path)) for path in paths]
            keys: list[set[str]] = [set(), set()]
            for number, old in enumerate(rows["label"].tolist()):
                if old < 0:
                    continue
                part = int(is_held[old])
                role = ROLES[number not in gallery] if part else None
                try:
                    members = opened.members(number)
                    sample = Sample(key_of(members[0].name), members)
                    contents = contents_of(source.fileno(), sample)
                except BadSampleError as error:
                    raise WorkError(f"{tar}: {error}; the set changed meanwhile") from error
                # Two samples of one key may become neighbours, and would be taken for one.
                prefix = f"{number}-" if sample.key in keys[part] else ""
                keys[part].add(sample.key)
                labelled = relabelled(sample, contents, (old, int(labels[old])), self._label_key, prefix, role)
                writers[part].write_members(labelled)
        for path, writer in zip(paths, writers, strict=True):
            if not writer.shard.samples:
                path.unlink()
                path.with_suffix(".idx").unlink()
        return Parted(*(writer.shard for writer in writers))


def _gallery_numbers(places: Ints, unit: int) -> frozenset[int]:
    """Numbers of the gallery's samples in a shard."""
    first = int(place(unit, 0))
    start, stop = np.searchsorted(places, [first, int(place(unit + 1, 0))])
    return frozenset((places[start:stop] - first).tolist())
