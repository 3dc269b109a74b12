"""Samples of a set of shards by number, for several threads at once; a sample that is unusable is an error here.

Training may leave bad samples out; an evaluation that did would not be comparable with the next.
"""

import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from dist_train.data.manifest import load_manifest
from dist_train.data.reader import ImageSet, SampleReader
from dist_train.data.shards import BadSampleError, RawSample
from dist_train.errors import UserError, WorkError

ROLES = ("gallery", "probe")
_OPEN_SHARDS = 64


class StoredSet:
    """The samples of a set, in the order of its shards and of the samples in them.

    Args:
        directory: a set of shards.
        label_key: key of the label in samples that have no `.cls`.
        labelled: whether labels are read; else each is -1, and samples need none.

    Raises:
        UserError: no such set.
    """

    def __init__(self, directory: Path, label_key: str = "label", *, labelled: bool = True) -> None:
        self.directory = directory
        self.manifest = load_manifest(directory)
        images = ImageSet(str(directory), self.manifest, labelled=labelled)
        self._reader = SampleReader([images], label_key, _OPEN_SHARDS)
        self._starts = np.cumsum([0] + [shard.samples for shard in self.manifest.shards])
        self._lock = threading.Lock()  # the reader opens and closes shards

    def __len__(self) -> int:
        return int(self._starts[-1])

    def sample(self, number: int) -> RawSample:
        """A sample: its key, encoded picture, label and parsed `.json`.

        Raises:
            WorkError: it cannot be used.
        """
        shard = int(np.searchsorted(self._starts, number, side="right")) - 1
        try:
            with self._lock:
                return self._reader.read(shard, number - int(self._starts[shard]), with_record=True)
        except BadSampleError as error:
            raise WorkError(
                f"set {self.directory}: sample {number}, in {self._reader.name(shard)}: {error}; "
                "run `headcount data verify`"
            ) from error

    def read(self, number: int) -> bytes:
        """The encoded picture of a sample."""
        return self.sample(number).image.tobytes()

    def labels_and_roles(self) -> tuple[np.ndarray, list[str | None]]:
        """The label, int64, and the role in the `.json`, or None, of every sample.

        Raises:
            WorkError: a sample that cannot be used.
        """
        labels, roles = np.empty(len(self), dtype=np.int64), []
        for number in range(len(self)):
            sample = self.sample(number)
            labels[number] = sample.label
            roles.append((sample.record or {}).get("role"))
        return labels, roles

    def close(self) -> None:
        """Close the shards."""
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def has_roles(directory: Path) -> bool:
    """Whether a set's first or last sample has a role; one with some samples without is refused where roles matter.

    Raises:
        UserError: no such set, or one without samples.
        WorkError: a sample that cannot be used.
    """
    with StoredSet(directory) as samples:
        if not len(samples):
            raise UserError(f"set {directory}: no samples in it")
        ends = (samples.sample(number).record or {} for number in (0, len(samples) - 1))
        return any(record.get("role") is not None for record in ends)


class RoleSet(StoredSet):
    """A set for identification: every sample belongs to the gallery or is a probe, as its `.json` says.

    Attributes:
        labels: int64 [N].
        is_gallery: bool [N].

    Raises:
        UserError: no such set, samples without a role, or no gallery or no probes.
        WorkError: a sample that cannot be used.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        try:
            self.labels, roles = self.labels_and_roles()
            for number, role in enumerate(roles):
                if role not in ROLES:
                    raise UserError(
                        f"identification set {directory}: sample {self.sample(number).key} has role {role!r} in its "
                        f".json, expected one of {ROLES}"
                    )
            self.is_gallery = np.array([role == "gallery" for role in roles], dtype=bool)
            count = int(self.is_gallery.sum())
            if not 0 < count < len(self):
                raise UserError(
                    f"identification set {directory}: {count} gallery pictures and {len(self) - count} probes; "
                    "expected some of both"
                )
        except BaseException:
            self.close()
            raise
