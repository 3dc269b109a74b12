"""A set's pictures as a model sees them, with what is known of each: what evaluations on own pictures work on."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from dist_train.data.manifest import IDENTITIES_NAME
from dist_train.errors import UserError
from dist_train.evaluate.embeddings import embed_pictures
from dist_train.evaluate.judging import Judging
from dist_train.evaluate.pictures import decoding
from dist_train.evaluate.sets import StoredSet
from dist_train.runtime.parquet import bounded_batches
from dist_train.runtime.text import first_line

OWN_COLUMNS = ("label", "name", "count")  # of identities.parquet, in every set


@dataclass(frozen=True)
class EmbeddedSet:
    """The pictures of a set in its order, the same on every rank.

    Attributes:
        name: of the set, in figures and tables.
        path: a directory of shards, or a file of embeddings.
        features: unit rows, float32 [N, D]; a zero row stays zero.
        norms: float32 [N], of the network's raw outputs.
        labels: int64 [N]; -1 for a picture without one.
        keys: of the samples, or what names a row of a file, [N].
        roles: what each sample's `.json` says that it is, e.g. "gallery", or None, [N].
        columns: by name, a value for each picture, or None, [N].
    """

    name: str
    path: Path
    features: Tensor
    norms: Tensor
    labels: Tensor
    keys: list[str]
    roles: list[str | None]
    columns: dict[str, list[object]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True)
class Listed:
    """What is known of a set's pictures without a network; attributes as those of `EmbeddedSet`."""

    labels: Tensor
    keys: list[str]
    roles: list[str | None]
    columns: dict[str, list[object]]


def embed_set(path: Path, how: Judging, columns: Sequence[str] = ()) -> EmbeddedSet:
    """Embed all pictures of a set of shards, over all ranks. A collective.

    Args:
        path: directory of the set.
        how: the network and what runs it.
        columns: fields of the samples' `.json`, or columns of the set's identities.parquet.

    Raises:
        UserError: no such set, or a column that nothing in it has.
        WorkError: a damaged picture or embeddings that are not finite.
    """
    name = f"set {path}"
    with how.ranks.agree(lambda: StoredSet(path), "all") as samples:
        listed = how.ranks.agree(lambda: list_set(samples, columns), "all")
        embeddings = (how.kept or {}).get(path) or embed_pictures(
            how.embed,
            decoding(samples.read, how.image_size, name),
            len(samples),
            how.batch_size,
            flip=how.flip,
            name=name,
            ranks=how.ranks,
        )
    if how.kept is not None:
        how.kept[path] = embeddings
    return EmbeddedSet(
        Path(path).resolve().name,
        path,
        embeddings.normalized(),
        embeddings.norms,
        listed.labels,
        listed.keys,
        listed.roles,
        listed.columns,
    )


def list_set(samples: StoredSet, columns: Sequence[str] = ()) -> Listed:
    """What the samples and the table of identities say of each picture.

    Raises:
        UserError: a column that nothing in the set has.
        WorkError: a sample that cannot be used.
    """
    labels, keys, roles = torch.empty(len(samples), dtype=torch.int64), [], []
    values: dict[str, list[object]] = {column: [] for column in columns}
    for number in range(len(samples)):
        sample = samples.sample(number)
        record = sample.record or {}
        labels[number] = sample.label
        keys.append(sample.key)
        roles.append(record.get("role"))
        for column in columns:
            values[column].append(record.get(column))
    for column, found in values.items():
        if all(value is None for value in found):
            values[column] = _of_identities(samples.directory, column, labels, samples.manifest.num_classes)
    return Listed(labels, keys, roles, values)


def _of_identities(directory: Path, column: str, labels: Tensor, classes: int) -> list[object]:
    """A column of the set's identities.parquet, for each picture.

    Raises:
        UserError: no such column, or a table that is damaged or of another set.
    """
    path = directory / IDENTITIES_NAME
    have: list[str] = []
    try:
        if path.is_file():
            metadata = pq.read_metadata(path)
            have = metadata.schema.to_arrow_schema().names
            if column in have and column != "label":
                if metadata.num_rows > classes:  # before it is unpacked
                    raise UserError(f"{path}: {metadata.num_rows:,} rows for {classes:,} identities")
                by_label: dict[object, object] = {}
                for batch in bounded_batches(path, ["label", column]):
                    by_label |= dict(zip(*(each.to_pylist() for each in batch.columns), strict=True))
                return [by_label.get(label) for label in labels.tolist()]
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read: {first_line(error)}; write the set again") from error
    own = [name for name in have if name not in OWN_COLUMNS]
    raise UserError(
        f"set {directory}: {column!r} is neither a field of a sample's .json nor a column of {IDENTITIES_NAME}"
        + (f", which has {', '.join(own)}" if own else "")
    )
