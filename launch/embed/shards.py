"""The origin of pictures in tar shards: own sets, webdataset's and img2dataset's, with labels and scores if present."""

import json
import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa

from data_prep.sources.base import BATCH_ROWS, MAX_FILE_BYTES, display
from dist_train.data.identities import read_identities
from dist_train.data.index import Member
from dist_train.data.manifest import IDENTITIES_NAME, MAX_CLASSES
from dist_train.data.reject import Reject
from dist_train.data.tar_folder import refuse_other_inputs, tars_in
from dist_train.data.tar_samples import LABEL_KINDS, Photo, read_photos
from dist_train.data.tars import LeftOut
from dist_train.embed.pictures import Place
from dist_train.errors import WorkError
from dist_train.runtime.text import shown_name
from launch.embed.origins import Found, Origin

_LISTED = pa.schema(
    [("tar", pa.binary()), ("name", pa.string())]  # bytes, because file names need not be UTF-8
    + [(f"{kind}_{what}", pa.int64()) for kind in ("picture", *LABEL_KINDS) for what in ("offset", "size")]
    + [("reason", pa.string()), ("detail", pa.string())]  # reason why a member is no picture
)
_OPEN_TARS = 64
_MOST_BYTES = {"picture": MAX_FILE_BYTES, "cls": 4096, "json": 16 << 20}  # most bytes of a member that are read
_MOST_IDENTITIES = 1 << 31  # a set with tars alone does not say how many it has
_IN_TAR = re.compile(r"(.*?\.tar):", re.IGNORECASE | re.DOTALL)  # a place: `TAR:MEMBER`


class ShardOrigin(Origin):
    """The origin that is a tar or a folder of tars; identities are from `identities.parquet` or inner folders.

    Args:
        path: of the tar or folder.
        label_key: key of the label in samples that have no `.cls`.
    """

    def __init__(self, path: Path, label_key: str) -> None:
        self._path = path
        self._folder = path if path.is_dir() else path.parent
        self._label_key = label_key
        self._open: dict[bytes, int] = {}
        self._identities: _Names | None = None

    def described(self) -> dict[str, Any]:
        """Description: path, and key of the labels."""
        return {"kind": "Shards", "path": str(self._path), "label_key": self._label_key}

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The listing: tars in the order of their names, pictures and other members in the order of the tar."""
        self._names()  # what is wrong with them is told before the work begins
        if self._path.is_dir():
            refuse_other_inputs(self._path, photos=True)
        for tar in tars_in(self._path) if self._path.is_dir() else [self._path]:
            name = os.fsencode(tar.name)
            rows = (_listed(name, found) for found in read_photos(tar, LABEL_KINDS))
            while chunk := list(islice(rows, BATCH_ROWS)):
                yield pa.RecordBatch.from_pylist(chunk, schema=_LISTED)

    def read(self, rows: pa.RecordBatch) -> list[tuple[Place, Found | Reject]]:
        """The pictures or rejects of listed rows, read at their offsets."""
        return [self._read(row) for row in rows.to_pylist()]

    def fetch(self, place: Place) -> bytes | Reject:
        """The picture at its offset; in a tar whose name is not UTF-8 it is not found again."""
        found = _IN_TAR.match(place.path)
        if found is None:
            return Reject("vanished", f"{place.path} lies in no tar, and there are tars now in {self._folder}")
        return self._bytes(found[1].encode(), "picture", place.offset, place.size)

    def close(self) -> None:
        """Close all tars."""
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()

    def _names(self) -> "_Names":
        """Names of the identities, read when they are first needed: `fetch` does without."""
        if self._identities is None:
            self._identities = _Names(self._folder / IDENTITIES_NAME)
        return self._identities

    def _read(self, row: dict[str, Any]) -> tuple[Place, Found | Reject]:
        place = Place(f"{display(row['tar'])}:{row['name']}", row["picture_offset"], row["picture_size"])
        if row["reason"]:
            return place, Reject(row["reason"], row["detail"])
        data, *beside = (
            self._bytes(row["tar"], kind, row[f"{kind}_offset"], row[f"{kind}_size"])
            for kind in ("picture", *LABEL_KINDS)
        )
        if isinstance(data, Reject):
            return place, data
        label_text, record_text = (b"" if isinstance(text, Reject) else text for text in beside)
        record = _record(record_text)
        label = _label(label_text, record.get(self._label_key))
        folder = PurePosixPath(row["name"]).parent.name or None
        identity = self._names()[label] if label is not None else None
        return place, Found(data, identity or folder, label, _score(record.get("score")))

    def _bytes(self, tar: bytes, kind: str, offset: int, size: int) -> bytes | Reject:
        if not size:
            return b""
        if size > _MOST_BYTES[kind]:
            return Reject("too large", f"{size} bytes, the most is {_MOST_BYTES[kind]}")
        try:
            data = os.pread(self._descriptor(tar), size, offset)
        except FileNotFoundError:
            return Reject("vanished", f"{display(tar)} was listed and is not there any more")
        except OSError as error:
            raise WorkError(f"{self._folder / os.fsdecode(tar)}: {error.strerror}; the same command goes on") from error
        if len(data) < size:
            return Reject("truncated", f"the tar ends {size - len(data)} bytes before the member does")
        return data

    def _descriptor(self, tar: bytes) -> int:
        if tar not in self._open:
            if len(self._open) >= _OPEN_TARS:
                os.close(self._open.pop(next(iter(self._open))))
            self._open[tar] = os.open(self._folder / os.fsdecode(tar), os.O_RDONLY | os.O_CLOEXEC)
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


def _listed(tar: bytes, found: Photo | LeftOut) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(_LISTED.names)
    members: dict[str, Member] = {}
    if isinstance(found, Photo):
        members = {"picture": found.picture, **found.beside}
        row |= {"tar": tar, "name": shown_name(found.picture.name)}
    else:
        row |= {"tar": tar, "name": shown_name(found.name), "reason": found.reason, "detail": shown_name(found.detail)}
    for kind in ("picture", *LABEL_KINDS):
        member = members.get(kind)
        row[f"{kind}_offset"], row[f"{kind}_size"] = (member.offset, member.size) if member else (0, 0)
    return row


def _record(text: bytes) -> dict[str, Any]:
    try:
        body = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return {}  # the picture is usable; `headcount data verify` reports such records
    return body if isinstance(body, dict) else {}


def _label(text: bytes, recorded: object) -> int | None:
    digits = text.strip()
    label = int(digits) if digits.isdigit() and len(digits) <= 18 else recorded
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < MAX_CLASSES:
        return None
    return label


def _score(recorded: object) -> float | None:
    return float(recorded) if isinstance(recorded, int | float) and 0 <= recorded <= 1 else None
