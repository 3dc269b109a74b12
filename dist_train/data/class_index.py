"""The samples of a set sorted by class, for class-balanced batches: made once, then mapped by every process."""

import hashlib
import logging
from contextlib import closing
from pathlib import Path

import numpy as np

from dist_train.data.counters import Ints
from dist_train.data.manifest import Manifest
from dist_train.data.reader import ImageSet, SampleReader
from dist_train.data.remote import CachePolicy
from dist_train.data.shards import BadSampleError
from dist_train.errors import WorkError
from dist_train.runtime.files import map_array
from dist_train.runtime.lock import Lock
from dist_train.runtime.progress import progress_bar
from dist_train.runtime.written import written

log = logging.getLogger(__name__)

_LOCK_S = 3600.0  # an hour: another process may be reading the labels of a large set
_MEMBERS, _STARTS = "members.npy", "starts.npy"


def build_class_index(source: ImageSet, label_key: str, policy: CachePolicy) -> Path:
    """Directory with the index of a set under a label key, read from its labels unless it is there.

    Samples without a usable label are left out, with one warning.

    Args:
        source: the set.
        label_key: entry of the `.json` files that have the labels, where no `.cls` files have them.
        policy: where the index is kept, and how shards behind an address are.

    Raises:
        WorkError: a shard, or a sample in it, cannot be read.
    """
    key = hashlib.sha256(label_key.encode(errors="surrogatepass")).hexdigest()
    directory = policy.directory / "classes" / f"{source.manifest.digest[:32]}-{key[:16]}"
    directory.mkdir(parents=True, exist_ok=True)
    with Lock(directory / ".lock", _LOCK_S):
        if not _is_sound(directory, source.manifest):
            labels = _read_labels(source, label_key, policy)
            members = np.argsort(labels, kind="stable")
            starts = np.searchsorted(labels[members], np.arange(source.manifest.num_classes + 1))
            for name, array in ((_MEMBERS, members), (_STARTS, starts)):  # the last says that the index is whole
                with written(directory / name) as file:
                    np.save(file, array)
    return directory


def load_class_index(directory: Path) -> tuple[Ints, Ints]:
    """Samples sorted by class [N], of which class c has starts[c] .. starts[c + 1]; and starts [classes + 1]."""
    return map_array(directory / _MEMBERS, "r"), np.array(map_array(directory / _STARTS, "r"))


def _is_sound(directory: Path, manifest: Manifest) -> bool:
    """Whether an index is there, and every number in it is one of a sample of the set."""
    if not (directory / _STARTS).exists():
        return False
    try:
        members, starts = load_class_index(directory)
        return (
            members.dtype == starts.dtype == np.int64
            and members.shape == (manifest.samples,)
            and starts.shape == (manifest.num_classes + 1,)
            and int(starts[0]) >= 0
            and int(starts[-1]) == manifest.samples
            and bool((np.diff(starts) >= 0).all())
            and int(members.min()) >= 0
            and int(members.max()) < manifest.samples
        )
    except (OSError, ValueError) as error:
        log.warning("%s: damaged and made again: %s", directory, error)
        return False


def _read_labels(source: ImageSet, label_key: str, policy: CachePolicy) -> Ints:
    labels = np.full(source.manifest.samples, -1, dtype=np.int64)
    number = 0
    first = ""  # what is wrong with the first sample that has no label
    with (
        closing(SampleReader([source], label_key, 1, policy)) as reader,
        progress_bar(total=len(labels), desc="labels", unit="img", unit_scale=True) as bar,
    ):
        for shard, entry in enumerate(source.manifest.shards):
            for sample in range(entry.samples):
                try:
                    labels[number] = reader.read(shard, sample).label
                except BadSampleError as error:
                    # The index is kept for ever, and this may pass: a disk or a server that does not answer now.
                    if not reader.is_open(shard) or isinstance(error.__cause__, OSError):
                        raise WorkError(
                            f"{reader.name(shard)}: {error}; classes are known by the labels of all shards: bring the "
                            "shard back, or write the set again without it"
                        ) from error
                    first = first or f"{reader.key(shard, sample)} in {reader.name(shard)}: {error}"
                number += 1
            bar.update(entry.samples)
    if first:
        log.warning(
            "set %s: %d of %d samples have no label that can be used and are left out, e.g. %s",
            source.path, (labels < 0).sum(), len(labels), first,
        )  # fmt: skip
    return labels
