"""What a split needs to know of every sample: its label, when it was taken, and a hash that orders it."""

import hashlib
import math
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from data_prep.merge.move import check_size, open_shard
from data_prep.merge.relabel import ROLE_KEY
from data_prep.split.files import SplitFiles
from dist_train.data.foreign import write_index
from dist_train.data.manifest import Shard
from dist_train.data.shards import BadSampleError, OpenShard
from dist_train.data.tar_samples import key_of
from dist_train.runtime.files import map_array, read_bounded
from dist_train.runtime.text import shown
from dist_train.runtime.written import write_failures, write_json, written

ROW = np.dtype([("label", np.int64), ("hash", np.uint64), ("time", np.float64)])
"""Of a sample: its label, -1 where it cannot be used; its place in a seeded order; its time, nan for none."""
_MOST_MARK_BYTES = 1 << 20
_MOST_TOLD = 500  # characters of an example
_MOST_TIME = 64  # characters of a date
_DIGEST_BYTES = 8


class Surveyed(NamedTuple):
    """The mark of a shard that was looked through. Examples are empty where there is none.

    Attributes:
        samples: that can be used.
        left_out: samples that cannot be used.
        left_out_example: one of them, with the reason.
        roles: samples that have a role already.
        role_example: one of them.
        timeless: samples without a usable time.
        timeless_example: one of them, with what was found.
        dates: times that are dates.
        numbers: times that are numbers.
    """

    samples: int
    left_out: int
    left_out_example: str
    roles: int
    role_example: str
    timeless: int
    timeless_example: str
    dates: int
    numbers: int


_SURVEYED = TypeAdapter(Surveyed)


class SurveyShard:
    """Looks through a set's shards by their numbers; the task of an engine.

    Args:
        files: of the split.
        folder: of the set.
        shards: of the set.
        label_key: key of the label in samples that have no `.cls`.
        classes: of the set; labels are below.
        time_field: key of the time in the samples' `.json`; None where times do not matter.
        seed: of the samples' order.
    """

    def __init__(
        self,
        files: SplitFiles,
        folder: Path,
        shards: Sequence[Shard],
        label_key: str,
        classes: int,
        time_field: str | None,
        seed: int,
    ) -> None:
        self._files, self._folder, self._shards = files, folder, shards
        self._label_key, self._classes = label_key, classes
        self._time_field, self._seed = time_field, seed

    def __call__(self, unit: int) -> dict[str, Any]:
        """Look through shard `unit`; its mark.

        Raises:
            UserError: not a tar.
            WorkError: the shard is not what its manifest says, or the disk failed.
        """
        shard, index = self._shards[unit], self._files.index(unit)
        tar = self._folder / shard.name
        with write_failures(f"index of {tar}"):
            write_index(tar, index)  # an index beside the tar has no digest
        tally = _Tally(self._time_field)
        rows = np.zeros(shard.samples, ROW)
        with closing(open_shard(tar, index, shard)) as opened:
            for number in range(shard.samples):
                rows[number] = self._row(opened, number, tally)
        found = tally.surveyed()
        with write_failures(f"survey of {tar}"):
            with written(self._files.rows(unit)) as file:
                np.save(file, rows)
            write_json(self._files.surveyed(unit), found._asdict())
        return found._asdict()

    def _row(self, opened: OpenShard, number: int, tally: "_Tally") -> tuple[int, int, float]:
        try:
            members = opened.members(number)
            check_size(members)
            raw = opened.read(number, self._label_key, with_record=True)
            if raw.label >= self._classes:
                raise BadSampleError(f"label {raw.label}, but the set has {self._classes} classes")
        except BadSampleError as error:
            tally.leave_out(f"{opened.path.name}, sample {opened.key(number)}: {error}")
            return -1, 0, math.nan
        where = f"{opened.path.name}, sample {opened.key(number)}"
        return raw.label, hash_of(key_of(members[0].name), self._seed), tally.take(where, raw.record or {})

    def finished(self, unit: int) -> Surveyed | None:
        """What was found before, if all of it is there."""
        try:
            found = _SURVEYED.validate_json(read_bounded(self._files.surveyed(unit), _MOST_MARK_BYTES))
            read_rows(self._files, unit, self._shards[unit])
            return found if self._files.index(unit).exists() else None
        except (OSError, ValueError):
            return None


def read_rows(files: SplitFiles, unit: int, shard: Shard) -> NDArray[Any]:
    """The rows of a shard that was looked through, mapped: `ROW` [samples].

    Raises:
        OSError: they are not there.
        ValueError: damaged.
    """
    rows = map_array(files.rows(unit), "r")
    if rows.dtype != ROW or rows.shape != (shard.samples,):
        raise ValueError(f"{files.rows(unit)}: {rows.dtype} {rows.shape}, expected {shard.samples} samples")
    return rows


def hash_of(text: str, seed: int) -> int:
    """A number below 2^64 by which things are brought into an order that their names and a seed alone decide."""
    data = f"{seed}\0{text}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(data, digest_size=_DIGEST_BYTES).digest(), "little")


class _Tally:
    """What was found in the samples of a shard."""

    def __init__(self, time_field: str | None) -> None:
        self._time_field = time_field
        self._counts = dict.fromkeys(("samples", "left_out", "roles", "timeless", "dates", "numbers"), 0)
        self._examples: dict[str, str] = {}

    def leave_out(self, told: str) -> None:
        self._note("left_out", told)

    def take(self, where: str, record: dict[str, Any]) -> float:
        """Count a usable sample; its time."""
        self._counts["samples"] += 1
        if (role := record.get(ROLE_KEY)) is not None:
            self._note("roles", f"{where}: {shown(role)}")
        if self._time_field is None:
            return math.nan
        value = record.get(self._time_field)
        time = _seconds(value)
        if math.isnan(time):
            self._note("timeless", f"{where}: {shown(value)}" if self._time_field in record else f"{where}: none")
        else:
            self._counts["dates" if isinstance(value, str) else "numbers"] += 1
        return time

    def surveyed(self) -> Surveyed:
        examples = {name: self._examples.get(name, "") for name in ("left_out", "roles", "timeless")}
        return Surveyed(
            left_out_example=examples["left_out"],
            role_example=examples["roles"],
            timeless_example=examples["timeless"],
            **self._counts,
        )

    def _note(self, name: str, told: str) -> None:
        self._counts[name] += 1
        self._examples.setdefault(name, told[:_MOST_TOLD])


def _seconds(value: object) -> float:
    """A time as a number that can be compared: itself, or the seconds of a date; nan of anything else."""
    try:
        if isinstance(value, str) and len(value) <= _MOST_TIME:
            found = datetime.fromisoformat(value)
            return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    except (ValueError, OverflowError):
        pass
    return math.nan
