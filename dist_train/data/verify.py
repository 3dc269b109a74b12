"""Check a set against its manifest: sizes, checksums, indexes, labels, and that every picture decodes."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from dist_train.data.manifest import Manifest, Shard
from dist_train.data.opencv import decode
from dist_train.data.reader import ImageSet, SampleReader
from dist_train.data.shards import BadSampleError
from dist_train.data.tar_samples import read_samples
from dist_train.data.tars import LeftOut
from dist_train.errors import UserError
from dist_train.runtime.in_processes import in_processes
from dist_train.runtime.text import shown_name


class Problem(NamedTuple):
    """Something wrong in a set; `key` is None where it is about a whole shard."""

    shard: str
    key: str | None
    reason: str


class ShardVerdict(NamedTuple):
    """What was found in one shard."""

    shard: str
    samples: int
    problems: list[Problem]


def verify_set(
    path: Path, manifest: Manifest, workers: int, decode_all: bool = True, label_key: str = "label"
) -> Iterator[ShardVerdict]:
    """Verdicts on the shards of a set, in their order; `workers` shards are checked at a time.

    Args:
        path: directory of the set.
        manifest: what it should hold.
        workers: processes.
        decode_all: decode every picture, too.
        label_key: key of the label in samples that have no `.cls`.

    Raises:
        WorkError: a process died.
    """
    of_all = replace(manifest, shards=())  # a process is told of its shard alone
    verify = partial(verify_shard, path, of_all, decode_all=decode_all, label_key=label_key)
    yield from in_processes(verify, manifest.shards, workers)


def verify_shard(path: Path, manifest: Manifest, shard: Shard, decode_all: bool, label_key: str) -> ShardVerdict:
    """Check one shard of the set in `path`; of the manifest only what is about all shards is used."""
    try:
        problems = [Problem(shard.name, None, reason) for reason in [shard.mismatch(path / shard.name)] if reason]
    except OSError as error:
        return ShardVerdict(shard.name, 0, [Problem(shard.name, None, f"{error.strerror}")])
    problems += left_out_of(path / shard.name)
    one = Manifest(manifest.image_size, manifest.num_classes, (shard,))
    reader = SampleReader([ImageSet(str(path), one)], label_key, open_shards=1)
    try:
        for sample in range(shard.samples):
            try:
                raw = reader.read(0, sample)
                if decode_all:
                    decode(raw.image, raw.set_px)
            except BadSampleError as error:
                problem = Problem(shard.name, reader.key(0, sample), str(error))
                if reader.is_open(0):
                    problems.append(problem)
                    continue
                problems.append(problem._replace(key=None))
                break
    finally:
        reader.close()
    return ShardVerdict(shard.name, shard.samples, problems)


def left_out_of(path: Path) -> list[Problem]:
    """What is in a tar and cannot be read; files that are no pictures and belong to none are nobody's problem."""
    try:
        found = [each for each in read_samples(path) if isinstance(each, LeftOut) and each.reason != "no picture"]
    except UserError as error:
        return [Problem(path.name, None, str(error))]
    return [Problem(path.name, shown_name(each.name), f"{each.reason}: {each.detail}") for each in found]
