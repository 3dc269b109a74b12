"""The samples of a set sorted by class, for class-balanced batches: made once, then mapped by every process."""

import hashlib
import logging
from pathlib import Path

import numpy as np

from dist_train.data.counters import Ints
from dist_train.data.manifest import Manifest
from dist_train.data.reader import ImageSet, SampleReader
from dist_train.data.shards import BadSampleError
from dist_train.runtime.files import map_array
from dist_train.runtime.lock import Lock
from dist_train.runtime.progress import progress_bar
from dist_train.runtime.written import written

log = logging.getLogger(__name__)

_LOCK_S = 3600.0  # an hour: another process may be reading the labels of a large set
_MEMBERS, _STARTS = "members.npy", "starts.npy"


def build_class_index(source: ImageSet, label_key: str, cache_dir: Path) -> Path:
    """Directory with the index of a set under a label key, read from its labels unless it is there.

    Samples without a usable label are left out.
    """
    key = hashlib.sha256(label_key.encode(errors="surrogatepass")).hexdigest()
    directory = cache_dir / "classes" / f"{source.manifest.digest[:32]}-{key[:16]}"
    directory.mkdir(parents=True, exist_ok=True)
    with Lock(directory / ".lock", _LOCK_S):
        if not _is_sound(directory, source.manifest):
            labels = _read_labels(source, label_key)
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


def _read_labels(source: ImageSet, label_key: str) -> Ints:
    reader = SampleReader([source], label_key, open_shards=1)
    labels = np.full(source.manifest.samples, -1, dtype=np.int64)
    number = 0
    with progress_bar(total=len(labels), desc="labels", unit="img", unit_scale=True) as bar:
        for shard, entry in enumerate(source.manifest.shards):
            for sample in range(entry.samples):
                try:
                    labels[number] = reader.read(shard, sample).label
                except BadSampleError as error:
                    log.debug("%s: no label: %s", reader.name(shard), error)
                number += 1
            bar.update(entry.samples)
    reader.close()
    return labels
