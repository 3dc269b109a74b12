"""A set of the pictures in clusters: their bytes as they are, their labels the clusters'."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_prep.cluster.source import ClusterSource, samples_of
from data_prep.merge.move import contents_of
from data_prep.merge.relabel import relabelled
from data_prep.shards import ShardWriter, write_set
from dist_train.cluster.rows import Places
from dist_train.data.counters import Ints
from dist_train.data.manifest import Manifest, Shard
from dist_train.data.opencv import check_square
from dist_train.data.several_labels import LABELS_KEY
from dist_train.data.shards import BadSampleError
from dist_train.data.tar_samples import Sample, key_of, parts_of
from dist_train.embed.table import EmbeddingFile
from dist_train.errors import UserError, WorkError
from dist_train.runtime.progress import progress_bar
from dist_train.runtime.written import MAKE_ROOM, write_failures, written, written_directory

if TYPE_CHECKING:
    from tqdm import tqdm

CLUSTERS_NAME = "clusters.parquet"

_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),  # of the picture in the set that was embedded
        pa.field("cluster", pa.int64()),  # its label; null where the picture was left out
        pa.field("cosine", pa.float32(), nullable=False),  # of the picture and its cluster's centre
    ]
)


class Labelled(NamedTuple):
    """What becomes of each row of the embeddings.

    Attributes:
        labels: int64 [N, L] labels in the new set, the picture's own one first; -1: none.
        cosines: float32 [N] with the centre of its cluster.
        classes: number of labels.
    """

    labels: Ints
    cosines: NDArray[np.float32]
    classes: int


class Written(NamedTuple):
    """What was written.

    Attributes:
        manifest: of the set.
        unusable: pictures in clusters that are none that training can use.
        counts: int64 [classes] pictures of each cluster.
    """

    manifest: Manifest
    unusable: int
    counts: Ints


def write_clusters(
    out: Path, source: ClusterSource, file: EmbeddingFile, places: Places, labelled: Labelled, quiet: bool = False
) -> Written:
    """Write the set at `out`; it appears by rename, complete.

    Raises:
        UserError: the set changed meanwhile.
        WorkError: a shard is damaged, or the disk is full.
    """
    with write_failures(f"set {out}", MAKE_ROOM), written_directory(out) as home:
        writing = _Writing(home, source, places, labelled)
        with progress_bar(total=file.count, unit=" pictures", desc="write", disable=quiet, mininterval=0.5) as bar:
            for number, tar in enumerate(source.tars):
                writing.add(tar, number, bar)
        manifest = writing.finish()
        with written(home / CLUSTERS_NAME) as stream, pq.ParquetWriter(stream, _SCHEMA) as table:
            at = 0
            for names, _ in file.batches():
                here = slice(at, at := at + names.num_rows)
                own = labelled.labels[here, 0]
                columns = [names["path"], pa.array(own, mask=own < 0), pa.array(labelled.cosines[here])]
                table.write_table(pa.table(columns, schema=_SCHEMA))
    return Written(manifest, writing.unusable, writing.counts)


class _Writing:
    """A set that is being written into `home`."""

    def __init__(self, home: Path, source: ClusterSource, places: Places, labelled: Labelled) -> None:
        self._home, self._source, self._places, self._labelled = home, source, places, labelled
        self._sides: Counter[int] = Counter()
        self._shards: list[Shard] = []
        self.counts = np.zeros(labelled.classes, dtype=np.int64)
        self.unusable = 0

    def add(self, tar: Path, number: int, bar: "tqdm[Any]") -> None:
        """Write the samples of a tar that are in clusters."""
        manifest = self._source.manifest
        stated = {shard.name: shard for shard in manifest.shards}.get(tar.name) if manifest else None
        if stated and (found := stated.mismatch(tar)):
            raise WorkError(f"{tar}: {found}; get the shard again, or write the set again")
        target = self._home / f"clusters-{number:06d}.tar"
        with tar.open("rb", buffering=0) as file, ShardWriter(target) as writer:
            for sample, rows in samples_of(tar, self._places):
                bar.update(len(rows))
                if len(rows) == 1 and (labels := self._labelled.labels[rows[0]])[0] >= 0:
                    self._add(writer, sample, file.fileno(), int(self._places.labels[rows[0]]), labels)
        if writer.shard.samples:
            self._shards.append(writer.shard)
        else:
            target.unlink()
            target.with_suffix(".idx").unlink()

    def _add(self, writer: ShardWriter, sample: Sample, fd: int, old: int, labels: Ints) -> None:
        side = self._source.manifest.image_size if self._source.manifest else 0
        picture = parts_of(sample.members).pictures[0]
        try:
            contents = contents_of(fd, sample)
            encoded = contents[sample.members.index(picture)]
            self._sides[check_square(np.frombuffer(encoded, np.uint8), side).width] += 1
        except BadSampleError:
            self.unusable += 1
            return
        label = int(labels[0])
        files = relabelled(sample, contents, (old, label), self._source.label_key, "")
        if len(labels) > 1:
            files = _with_labels(files, [each for each in labels.tolist() if each >= 0])
        writer.write_members(files)
        self.counts[label] += 1

    def finish(self) -> Manifest:
        """Write the files of the set itself."""
        if not self._shards:
            raise UserError(f"set {self._source.path}: none of the pictures in clusters is a square one")
        side = self._sides.most_common(1)[0][0] if self._source.manifest is None else self._source.manifest.image_size
        names = [f"cluster-{label + 1:06d}" for label in range(len(self.counts))]
        aligner = self._source.manifest.aligner if self._source.manifest else None
        write_set(self._home, side, names, pa.array(self.counts), self._shards, aligner)
        return Manifest(side, len(names), tuple(self._shards), aligner=aligner)


def _with_labels(files: Sequence[tuple[str, bytes]], labels: list[int]) -> list[tuple[str, bytes]]:
    """The files of a sample with all its labels in its `.json`, which is added where there is none."""
    record = {LABELS_KEY: labels}
    others = []
    for name, data in files:
        if not name.lower().endswith(".json"):
            others.append((name, data))
            continue
        try:
            body = json.loads(data)
        except (ValueError, RecursionError):
            body = None
        record = {**body, **record} if isinstance(body, dict) else record
    return [*others, (f"{key_of(files[0][0])}.json", json.dumps(record).encode())]
