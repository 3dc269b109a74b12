"""Tars as other programs write them, and what `data`, `prep` and `embed` take out of them."""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from data_prep.sources.archives import TarSource
from data_prep.sources.base import Raw, Row
from dist_train.data.manifest import Manifest
from dist_train.data.reader import ImageSet, SampleReader
from dist_train.data.reject import Reject
from dist_train.data.shards import BadSampleError
from dist_train.data.sources import open_manifest
from launch.embed.open import open_origin

SIDE = 32


def drawn(number: int, side: int = SIDE, kind: str = "JPEG", **options: object) -> bytes:
    """A picture of one colour, another for each number."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (number * 37 % 256, number * 91 % 256, number % 256)).save(buffer, kind, **options)
    return buffer.getvalue()


def tar_of(path: Path, members: Iterable[tuple[str, bytes]], form: int = tarfile.GNU_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form, encoding="utf-8", errors="surrogateescape") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def labelled(names: Iterable[str], label: str = "cls") -> list[tuple[str, bytes]]:
    """A picture and a label for each key; sample i has label i."""
    members = []
    for number, name in enumerate(names):
        members += [(f"{name}.jpg", drawn(number)), (f"{name}.{label}", str(number).encode())]
    return members


def by_data(folder: Path) -> tuple[Manifest, list[int], list[str]]:
    """Manifest, labels, and reasons of bad samples of a folder of tars, as training has them."""
    manifest = open_manifest(str(folder))
    reader = SampleReader([ImageSet(str(folder), manifest)], "label", 4)
    labels, reasons = [], []
    for shard, entry in enumerate(manifest.shards):
        for sample in range(entry.samples):
            try:
                labels.append(reader.read(shard, sample).label)
            except BadSampleError as error:
                reasons.append(str(error))
    reader.close()
    return manifest, labels, reasons


def by_prep(path: Path) -> tuple[list[str], dict[str, str]]:
    """Identities of the photos that `prep align` takes, and reasons of the others by name."""
    source = TarSource(path=path)
    rows = [Row(0, *row.values()) for batch in source.batches() for row in batch.to_pylist()]
    reader = source.reader()
    found = reader.read_named(rows)
    reader.close()
    taken = [raw.identity for raw in found if isinstance(raw, Raw)]
    rejected = {source.text(row.location): raw for row, raw in zip(rows, found, strict=True)}
    return taken, {name: raw.reason for name, raw in rejected.items() if isinstance(raw, Reject)}


def by_embed(path: Path) -> tuple[list[tuple[str | None, int | None]], dict[str, str]]:
    """Identity and label of the pictures that `embed` takes, and reasons of the others by name."""
    origin = open_origin(path)
    found = [pair for batch in origin.batches() for pair in origin.read(batch)]
    origin.close()
    taken = [(each.identity, each.label) for _, each in found if not isinstance(each, Reject)]
    return taken, {place.path: each.reason for place, each in found if isinstance(each, Reject)}
