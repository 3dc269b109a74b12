"""The shard contract: what a set of shards is, shared by the writer (data_prep) and the reader (dist_train)."""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from pydantic import FailFast, Field, TypeAdapter, ValidationError

from dist_train.data.aligner import Aligner
from dist_train.errors import UserError
from dist_train.runtime.digest import sha256_of
from dist_train.runtime.files import MAX_NAME_BYTES, first_fault, plain_name, read_bounded
from dist_train.runtime.text import shown
from dist_train.runtime.written import write_json

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
IDENTITIES_NAME = "identities.parquet"
MAX_BYTES = 256 << 20
"""Of a manifest: some 1.6 million shards."""
_MAX_SHARDS = 1 << 20
_MAX_VALUES = 8 * _MAX_SHARDS  # in the JSON text
_MAX_SAMPLES = 1 << 31  # of a shard
_MAX_SHARD_BYTES = 1 << 44
MAX_CLASSES = 1 << 28
"""Labels stay below; each class is a row of floats in the head."""
MAX_SIDE_PX = 1 << 13


@dataclass(frozen=True, slots=True)
class Shard:
    """One tar of a set.

    Attributes:
        name: file name, relative to the set's directory.
        samples: pictures in it.
        bytes: size of the tar in bytes.
        sha256: hexadecimal digest of the whole tar.
    """

    name: str
    samples: Annotated[int, Field(ge=0, le=_MAX_SAMPLES)]
    bytes: Annotated[int, Field(ge=0, le=_MAX_SHARD_BYTES)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

    def size_fault(self, directory: Path) -> str | None:
        """Why the tar in a set's directory is not there in full, by its size; None if it is."""
        try:
            size = (directory / self.name).stat().st_size
        except OSError as error:
            return error.strerror or str(error)
        return None if size == self.bytes else self._other_size(size)

    def mismatch(self, tar: Path) -> str | None:
        """What a tar has other than this one should; None if it is the one."""
        if (size := tar.stat().st_size) != self.bytes:
            return self._other_size(size)
        digest = sha256_of(tar)
        return None if digest == self.sha256 else f"sha256 {digest}, the manifest says {self.sha256}"

    def _other_size(self, size: int) -> str:
        return f"{size} bytes, the manifest says {self.bytes}"


@dataclass(frozen=True, slots=True)
class Manifest:
    """A set of shards.

    Attributes:
        image_size: side of the square pictures in pixels.
        num_classes: labels are 0 .. num_classes - 1.
        shards: in their canonical order; the sample order is defined over it.
        label_key: entry of the `.json` files that the labels are from; None where they are `.cls` files.
        aligner: what placed the faces; None where that is unknown, as of older sets.
    """

    image_size: int
    num_classes: int
    shards: tuple[Shard, ...]
    label_key: str | None = None
    aligner: Aligner | None = None

    @property
    def samples(self) -> int:
        """Pictures in the set."""
        return sum(shard.samples for shard in self.shards)

    @property
    def digest(self) -> str:
        """Hexadecimal identity of the content: equal digests mean the same pictures in the same order."""
        text = "".join(f"{shard.sha256} {shard.samples}\n" for shard in self.shards)
        return hashlib.sha256(f"{self.num_classes}\n{text}".encode()).hexdigest()

    def save(self, directory: Path) -> None:
        """Write `manifest.json` into `directory`, by rename."""
        body = {"version": SCHEMA_VERSION, **asdict(self)}
        for key in ("label_key", "aligner"):
            if body[key] is None:
                del body[key]
        write_json(directory / MANIFEST_NAME, body)


@dataclass(frozen=True, slots=True)
class _Body:
    """The JSON object in a manifest's file."""

    version: Annotated[int, Field(ge=SCHEMA_VERSION, le=SCHEMA_VERSION)]
    image_size: Annotated[int, Field(ge=1, le=MAX_SIDE_PX)]
    num_classes: Annotated[int, Field(ge=1, le=MAX_CLASSES)]
    shards: Annotated[list[Shard], Field(max_length=_MAX_SHARDS), FailFast()]
    label_key: Annotated[str, Field(max_length=MAX_NAME_BYTES)] | None = None
    aligner: Aligner | None = None


_BODY = TypeAdapter(_Body)


def parse_manifest(text: bytes, source: str) -> Manifest:
    """Parse the text of a `manifest.json`.

    Args:
        text: the JSON text.
        source: where it came from, for messages.

    Raises:
        UserError: not JSON, another schema version, a missing or impossible value, or a name that leads elsewhere.
    """
    if sum(map(text.count, (b",", b"[", b"{"))) > _MAX_VALUES:  # each takes a hundred bytes and more once parsed
        raise UserError(f"{source}: more values than a manifest of {_MAX_SHARDS} shards has; write the set again")
    try:
        body = _BODY.validate_json(text, strict=True)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False)
        version = next((fault for fault in faults if fault["loc"] == ("version",)), None)
        if version is None:
            raise UserError(f"{source}: {first_fault(error)}; write the set again") from None
        # Of another version no other entry can be judged.
        found = "none" if version["type"] == "missing" else shown(version["input"])
        raise UserError(f"{source}: version {found}, expected {SCHEMA_VERSION}; write the set again") from None
    names: set[str] = set()
    for shard in body.shards:
        plain_name(shard.name, source)
        if not shard.name.lower().endswith(".tar") or shard.name.startswith("."):
            raise UserError(f"{source}: shard {shown(shard.name)}: expected a name that ends in .tar, not a hidden one")
        stem = shard.name[: -len(".tar")]  # of its index, too
        if stem in names:
            raise UserError(f"{source}: shard {shown(shard.name)} is listed twice; write the set again")
        names.add(stem)
    manifest = Manifest(body.image_size, body.num_classes, tuple(body.shards), body.label_key, body.aligner)
    if not manifest.samples:
        raise UserError(f"{source}: the set is empty: {len(names)} shards hold 0 samples")
    return manifest


def refuse_overlap(what: str, out: Path, place: Path) -> None:
    """Refuse an output that is a set's directory, lies in it, or has it inside.

    Raises:
        UserError: it does.
    """
    target, other = out.resolve(), place.resolve()
    if target == other:
        raise UserError(f"{what} {out} is the set {place} itself; sets are not changed in place: use another one")
    if other in target.parents or target in other.parents:
        raise UserError(f"{what} {out} and the set {place} lie in one another; use one beside it")


def load_manifest(directory: str | Path) -> Manifest:
    """Read the manifest of the set in `directory`.

    Raises:
        UserError: no such directory, no manifest in it, or a bad one.
    """
    directory = Path(directory)
    path = directory / MANIFEST_NAME
    try:
        text = read_bounded(path, MAX_BYTES)
    except FileNotFoundError as error:
        what = "no such directory" if not directory.is_dir() else f"no {MANIFEST_NAME} in it"
        raise UserError(
            f"dataset {directory}: {what}; make a set with `headcount prep`, or correct data.path"
        ) from error
    except OSError as error:
        raise UserError(f"dataset {directory}: cannot read {MANIFEST_NAME}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path}: {error}; write the set again") from error
    return parse_manifest(text, str(path))
