"""Shards of a set become shards of the new one: pictures, records and all other members with the bytes that they have.

A shard whose labels and keys stay is linked, or copied to another file system. Sets are never changed in place, so that
two sets may share a shard: whoever writes a shard again gives its name to a new file. All others are written again.
There every label is a `.cls`, and the keys of samples begin with digits that stand for their set.
"""

import os
import shutil
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import TypeAdapter

from data_prep.job.plan import JobFiles
from data_prep.merge.relabel import relabelled
from data_prep.shards import ShardWriter
from dist_train.data.counters import Ints
from dist_train.data.foreign import write_index
from dist_train.data.index import Member
from dist_train.data.manifest import Shard
from dist_train.data.shards import BadSampleError, OpenShard
from dist_train.data.tar_samples import Sample
from dist_train.errors import WorkError
from dist_train.runtime.files import map_array, read_bounded
from dist_train.runtime.text import shown_name
from dist_train.runtime.written import write_failures, write_json, written, written_path

_MOST_BYTES = 256 << 20  # of a sample; training reads no larger one either
_MOST_MARK_BYTES = 1 << 20
_WAY_OUT = "get the shard again, or write the set again"
_MOST_TOLD = 1000  # characters


class Origin(NamedTuple):
    """A shard that is moved.

    Attributes:
        folder: of its set.
        number: of its set among those that are merged, which names the file of its labels.
        shard: what its manifest says of it.
        label_key: key of the label in samples that have no `.cls`.
        prefix: of its keys in the new set.
        stays: its labels and keys stay.
        counted: whether the pictures of each label are to be counted.
    """

    folder: Path
    number: int
    shard: Shard
    label_key: str
    prefix: str
    stays: bool
    counted: bool


class Moved(NamedTuple):
    """The mark of a shard that was moved.

    Attributes:
        name: of the new shard.
        samples: in it.
        bytes: of the tar.
        sha256: of the tar.
        left_out: samples that cannot be used, and so cannot be labelled.
        example: one of them, with the reason.
    """

    name: str
    samples: int
    bytes: int
    sha256: str
    left_out: int
    example: str

    @property
    def shard(self) -> Shard:
        """Its entry in the manifest."""
        return Shard(self.name, self.samples, self.bytes, self.sha256)


_MOVED = TypeAdapter(Moved)


def labels_path(files: JobFiles, number: int) -> Path:
    """New labels of the identities of set `number`, int64 [its classes]."""
    return files.home / f"labels-{number}.npy"


def counts_path(files: JobFiles, unit: int) -> Path:
    """Labels of the samples of a shard, and how many have each: int64 [2, n]."""
    return files.home / "shards" / f"{unit:06d}.npy"


class MoveShard:
    """Moves the shards of `origins` by their numbers into the set at `out`; the task of an engine."""

    def __init__(self, out: Path, origins: Sequence[Origin]) -> None:
        self._files = JobFiles(out)
        self._origins = origins

    def __call__(self, unit: int) -> dict[str, Any]:
        """Move shard `unit`; its mark, which is written last.

        Raises:
            WorkError: the shard is not what its manifest says, or the disk failed.
        """
        origin, target = self._origins[unit], self._files.shard(unit)
        tar = origin.folder / origin.shard.name
        try:
            mismatch = origin.shard.mismatch(tar)
        except OSError as error:
            raise WorkError(f"{tar}: {error.strerror}") from error
        if mismatch:
            raise WorkError(f"{tar}: {mismatch}; {_WAY_OUT}")
        labels: Ints = map_array(labels_path(self._files, origin.number), "r")
        with write_failures(f"shard {target}"):
            linked = self._link(unit, tar, target, labels) if origin.stays else None
            moved, counts = linked or self._write_again(unit, tar, target, labels)
            if origin.counted:
                with written(counts_path(self._files, unit)) as file:
                    np.save(file, counts)
            write_json(self._files.sealed(unit), moved._asdict())
        return moved._asdict()

    def finished(self, unit: int) -> Moved | None:
        """What was moved before, if shard `unit` is there as its mark says."""
        try:
            moved = _MOVED.validate_json(read_bounded(self._files.sealed(unit), _MOST_MARK_BYTES))
            if moved.name != self._files.shard(unit).name:
                return None
            if self._origins[unit].counted:
                self.counts(unit)
            return None if moved.samples and moved.shard.mismatch(self._files.shard(unit)) else moved
        except (OSError, ValueError):
            return None

    def counts(self, unit: int) -> Ints:
        """Labels of the samples of shard `unit`, and how many have each: int64 [2, n].

        Raises:
            OSError: they are not there.
            ValueError: damaged.
        """
        counts: Ints = np.array(map_array(counts_path(self._files, unit), "r"))
        if counts.dtype != np.int64 or counts.ndim != 2 or len(counts) != 2 or (counts < 0).any():
            raise ValueError(f"{counts_path(self._files, unit)}: {counts.dtype} {counts.shape}")
        return counts

    def _link(self, unit: int, tar: Path, target: Path, labels: Ints) -> tuple[Moved, Ints] | None:
        """None where a sample cannot be used: its label might be that of somebody in another set."""
        shard = self._origins[unit].shard
        index = target.with_suffix(".idx")
        try:
            with tar.with_suffix(".idx").open("rb") as source, written(index) as file:
                shutil.copyfileobj(source, file)
            open_shard(tar, index, shard).close()
        except (FileNotFoundError, WorkError):  # none there, or one of another tar
            write_index(tar, index)
        counts = self._count(unit, tar, index, labels)
        if counts is None:
            return None
        target.unlink(missing_ok=True)
        try:
            os.link(tar.resolve(), target)
        except OSError:  # another file system, one without links, or somebody else's file
            with written_path(target) as temporary:
                shutil.copyfile(tar, temporary)
        return Moved(target.name, shard.samples, shard.bytes, shard.sha256, 0, ""), counts

    def _count(self, unit: int, tar: Path, index: Path, labels: Ints) -> Ints | None:
        """The tally of a shard's labels, empty where it is not asked for; None where a sample cannot be used."""
        origin = self._origins[unit]
        with closing(open_shard(tar, index, origin.shard)) as opened:
            numbers = range(origin.shard.samples if origin.counted else 0)
            try:
                return _tally([_new_label(opened, number, origin.label_key, labels)[1] for number in numbers])
            except BadSampleError:
                return None

    def _write_again(self, unit: int, tar: Path, target: Path, labels: Ints) -> tuple[Moved, Ints]:
        origin = self._origins[unit]
        # An index has no digest: what belongs to a sample is read from the tar itself.
        index = self._files.sealed(unit).with_suffix(".idx")
        samples = write_index(tar, index).samples
        if len(samples) != origin.shard.samples:
            raise WorkError(f"{tar}: {len(samples)} samples, the manifest says {origin.shard.samples}; {_WAY_OUT}")
        found: list[int] = []
        examples: list[str] = []
        with (
            closing(open_shard(tar, index, origin.shard)) as opened,
            tar.open("rb", buffering=0) as source,
            ShardWriter(target) as writer,
        ):
            for number, sample in enumerate(samples):
                try:
                    contents = contents_of(source.fileno(), sample)
                    old, new = _new_label(opened, number, origin.label_key, labels)
                except BadSampleError as error:
                    examples.append(f"{tar}, sample {opened.key(number)}: {error}")
                    continue
                writer.write_members(relabelled(sample, contents, (old, new), origin.label_key, origin.prefix))
                found.append(new)
        index.unlink(missing_ok=True)
        if not found:
            target.unlink()
            target.with_suffix(".idx").unlink()
        example = examples[0][:_MOST_TOLD] if examples else ""
        shard = writer.shard
        return Moved(target.name, shard.samples, shard.bytes, shard.sha256, len(examples), example), _tally(found)


def check_size(members: Sequence[Member]) -> None:
    """Refuse a sample that is too large to be held in memory.

    Raises:
        BadSampleError: it is.
    """
    if (size := sum(member.size for member in members)) > _MOST_BYTES:
        raise BadSampleError(f"its files have {size:,} bytes, at most {_MOST_BYTES:,} are moved")


def contents_of(fd: int, sample: Sample) -> list[bytes]:
    """The files of a sample.

    Raises:
        BadSampleError: more bytes than are moved.
        WorkError: they cannot be read.
    """
    check_size(sample.members)
    return [_content(fd, member) for member in sample.members]


def _content(fd: int, member: Member) -> bytes:
    try:
        data = os.pread(fd, member.size, member.offset)
    except OSError as error:
        raise WorkError(f"{shown_name(member.name)}: cannot be read: {error.strerror}") from error
    if len(data) < member.size:
        raise WorkError(f"{shown_name(member.name)}: {len(data)} of its {member.size} bytes can be read")
    return data


def open_shard(tar: Path, index: Path, shard: Shard) -> OpenShard:
    """A tar that is what its manifest says, with its index.

    Raises:
        WorkError: it is another one.
    """
    try:
        return OpenShard(tar, index, shard)
    except BadSampleError as error:
        raise WorkError(f"{error}; {_WAY_OUT}") from error


def _new_label(opened: OpenShard, number: int, label_key: str, labels: Ints) -> tuple[int, int]:
    """A sample's label and its new one."""
    label = opened.read(number, label_key).label
    if label >= len(labels):
        raise BadSampleError(f"label {label}, but the set has {len(labels)} classes")
    return label, int(labels[label])


def _tally(labels: Sequence[int]) -> Ints:
    return np.stack(np.unique(np.array(labels, dtype=np.int64), return_counts=True)).astype(np.int64)
