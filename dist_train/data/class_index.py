"""The samples of a set sorted by class, for class-balanced batches: made once, then mapped by every process."""

import logging
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dist_train.data.counters import Ints
from dist_train.data.foreign import locked
from dist_train.data.reader import ImageSet, SampleReader
from dist_train.data.shards import BadSampleError

log = logging.getLogger(__name__)

_LOCK_S = 3600.0  # an hour: another process may be reading the labels of a large set
_MEMBERS, _STARTS = "members.npy", "starts.npy"


def build_class_index(source: ImageSet, label_key: str, cache_dir: Path) -> Path:
    """Directory with the index of a set, read from its labels unless it is there.

    Samples without a usable label are left out.
    """
    directory = cache_dir / "classes" / source.manifest.digest[:32]
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory / ".lock", _LOCK_S):
        if not (directory / _STARTS).exists():
            labels = _read_labels(source, label_key)
            members = np.argsort(labels, kind="stable")
            starts = np.searchsorted(labels[members], np.arange(source.manifest.num_classes + 1))
            np.save(directory / _MEMBERS, members)
            temporary = directory / f"new-{_STARTS}"
            np.save(temporary, starts)
            temporary.replace(directory / _STARTS)  # last: it says that the index is whole
    return directory


def load_class_index(directory: Path) -> tuple[Ints, Ints]:
    """Samples sorted by class [N], of which class c has starts[c] .. starts[c + 1]; and starts [classes + 1]."""
    return np.load(directory / _MEMBERS, mmap_mode="r"), np.load(directory / _STARTS)


def _read_labels(source: ImageSet, label_key: str) -> Ints:
    reader = SampleReader([source], label_key, open_shards=1)
    labels = np.full(source.manifest.samples, -1, dtype=np.int64)
    number = 0
    with tqdm(total=len(labels), desc="labels", unit="img", unit_scale=True) as bar:
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
