"""Sets made of the glyph set: its first identities, with other pictures or other labels."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq

from data_prep.shards import ShardWriter, write_set
from dist_train.data.manifest import IDENTITIES_NAME, MANIFEST_NAME, load_manifest
from dist_train.data.reader import ImageSet, SampleReader
from dist_train.data.shards import RawSample

GLYPHS = Path("data/benchmark")


class Written(NamedTuple):
    """A sample of a new set."""

    key: str
    image: bytes
    label: int


def names_of(folder: Path) -> list[str]:
    """Names of a set's identities by label."""
    names: list[str] = pq.read_table(folder / IDENTITIES_NAME).sort_by("label")["name"].to_pylist()
    return names


def rewritten(
    source: Path, folder: Path, names: Sequence[str], change: Callable[[RawSample], Iterable[Written]]
) -> Path:
    """The set of identities `names` at `folder`, of what `change` makes of each sample of `source`; made once."""
    if (folder / MANIFEST_NAME).exists():
        return folder
    manifest = load_manifest(source)
    reader = SampleReader([ImageSet(str(source), manifest)], "label", open_shards=1)
    counts, shards = np.zeros(len(names), dtype=np.int64), []
    for number, shard in enumerate(manifest.shards):
        with ShardWriter(folder / shard.name) as writer:
            for sample in range(shard.samples):
                for each in change(reader.read(number, sample)):
                    writer.write(*each)
                    counts[each.label] += 1
        shards.append(writer.shard)
    reader.close()
    write_set(folder, manifest.image_size, names, counts.tolist(), [one for one in shards if one.samples])
    return folder


def first_identities(
    source: Path, folder: Path, classes: int, picture: Callable[[RawSample], bytes] = lambda raw: raw.image.tobytes()
) -> Path:
    """The first identities of `source`, with their pictures changed where `picture` changes them; made once."""

    def change(raw: RawSample) -> list[Written]:
        return [Written(raw.key, picture(raw), raw.label)] if raw.label < classes else []

    return rewritten(source, folder, names_of(source)[:classes], change)
