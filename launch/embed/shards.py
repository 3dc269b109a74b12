"""Pictures in tar shards: our own sets, webdataset's and img2dataset's, with labels and scores where they have any."""

import json
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa

from dist_train.data.foreign import scan_tar
from dist_train.data.identities import read_identities
from dist_train.data.index import Member, read_index
from dist_train.data.manifest import IDENTITIES_NAME
from dist_train.data.shards import IMAGE_EXTENSIONS
from dist_train.embed.pictures import Place, Rejected
from dist_train.errors import UserError, WorkError
from launch.embed.origins import Found, Origin

_LISTED = pa.schema(
    [("tar", pa.string()), ("name", pa.string())]
    + [(f"{kind}_{what}", pa.int64()) for kind in ("picture", "cls", "json") for what in ("offset", "size")]
)
_OPEN_TARS = 64
_MOST_IDENTITIES = 1 << 31  # a set with tars alone does not say how many it has


class ShardOrigin(Origin):
    """A tar, or a folder of tars. The identity is named by `identities.parquet`, or by the folder inside of the tar.

    Args:
        path: of the tar or folder.
        label_key: key of the label in samples that have no `.cls`.
    """

    def __init__(self, path: Path, label_key: str) -> None:
        self._path = path
        self._folder = path if path.is_dir() else path.parent
        self._label_key = label_key
        self._open: dict[str, int] = {}
        self._names = _Names(self._folder / IDENTITIES_NAME)

    def described(self) -> dict[str, Any]:
        """Path, and where labels are."""
        return {"kind": "Shards", "path": str(self._path), "label_key": self._label_key}

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The samples with a picture, tar by tar in the order of their names."""
        tars = sorted(self._path.glob("*.tar")) if self._path.is_dir() else [self._path]
        for tar in tars:
            try:
                rows = [row for members in _samples(tar) if (row := _listed(tar.name, members))]
            except OSError as error:
                raise UserError(f"source {tar}: {error.strerror}") from error
            if rows:
                yield pa.RecordBatch.from_pylist(rows, schema=_LISTED)

    def read(self, rows: pa.RecordBatch) -> list[tuple[Place, Found | Rejected]]:
        """The samples at their offsets."""
        return [self._read(row) for row in rows.to_pylist()]

    def fetch(self, place: Place) -> bytes | Rejected:
        """The picture at its offset."""
        tar, end, _ = place.path.partition(".tar:")
        return self._bytes(tar + end[:-1], place.offset, place.size)

    def close(self) -> None:
        """Close all tars."""
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()

    def _read(self, row: dict[str, Any]) -> tuple[Place, Found | Rejected]:
        place = Place(f"{row['tar']}:{row['name']}", row["picture_offset"], row["picture_size"])
        data = self._bytes(row["tar"], *_range(row, "picture"))
        if isinstance(data, Rejected):
            return place, data
        beside = (self._bytes(row["tar"], *_range(row, kind)) for kind in ("cls", "json"))
        label_text, record_text = (b"" if isinstance(text, Rejected) else text for text in beside)
        record = _record(record_text)
        label = _label(label_text, record.get(self._label_key))
        folder = PurePosixPath(row["name"]).parent.name or None
        identity = self._names[label] if label is not None else None
        score = record.get("score")
        return place, Found(data, identity or folder, label, float(score) if isinstance(score, int | float) else None)

    def _bytes(self, tar: str, offset: int, size: int) -> bytes | Rejected:
        if not size:
            return b""
        try:
            data = os.pread(self._descriptor(tar), size, offset)
        except FileNotFoundError:
            return Rejected("vanished", f"{tar} was listed and is not there any more")
        except OSError as error:
            raise WorkError(f"{self._folder / tar}: {error.strerror}; the same command goes on") from error
        if len(data) < size:
            return Rejected("truncated", f"the tar ends {size - len(data)} bytes before the member does")
        return data

    def _descriptor(self, tar: str) -> int:
        if tar not in self._open:
            if len(self._open) >= _OPEN_TARS:
                os.close(self._open.pop(next(iter(self._open))))
            self._open[tar] = os.open(self._folder / tar, os.O_RDONLY | os.O_CLOEXEC)
        return self._open[tar]


class _Names:
    """Names of identities by label, in Arrow's memory: a set may have millions."""

    def __init__(self, path: Path) -> None:
        self._names = None
        if path.is_file():
            table = read_identities(path, "name", _MOST_IDENTITIES).sort_by("label")
            self._labels = table["label"].to_numpy()
            self._names = table["name"]

    def __getitem__(self, label: int) -> str | None:
        if self._names is None:
            return None
        at = int(np.searchsorted(self._labels, label))
        return str(self._names[at]) if at < len(self._labels) and self._labels[at] == label else None


def _samples(tar: Path) -> list[list[Member]]:
    """Members of each sample, by the index where there is one that is not older than the tar."""
    index = tar.with_suffix(".idx")
    if index.exists() and index.stat().st_mtime >= tar.stat().st_mtime:
        return read_index(index)
    return scan_tar(tar)


def _listed(tar: str, members: list[Member]) -> dict[str, Any] | None:
    by_kind = {"picture" if m.extension in IMAGE_EXTENSIONS else m.extension: m for m in members}
    if "picture" not in by_kind:
        return None
    row: dict[str, Any] = {"tar": tar, "name": by_kind["picture"].name}
    for kind in ("picture", "cls", "json"):
        member = by_kind.get(kind)
        row[f"{kind}_offset"], row[f"{kind}_size"] = (member.offset, member.size) if member else (0, 0)
    return row


def _range(row: dict[str, Any], kind: str) -> tuple[int, int]:
    return row[f"{kind}_offset"], row[f"{kind}_size"]


def _record(text: bytes) -> dict[str, Any]:
    try:
        body = json.loads(text) if text else {}
    except ValueError:
        return {}  # the picture is what counts; a set with such records is reported by `headcount data verify`
    return body if isinstance(body, dict) else {}


def _label(text: bytes, recorded: object) -> int | None:
    digits = text.strip()
    if digits.isdigit() and len(digits) <= 18:
        return int(digits)
    return recorded if isinstance(recorded, int) and not isinstance(recorded, bool) else None
