"""The shard contract: what a set of shards is, shared by the writer (data_prep) and the reader (dist_train)."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from dist_train.errors import UserError

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
IDENTITIES_NAME = "identities.parquet"


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
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """A set of shards.

    Attributes:
        image_size: side of the square pictures in pixels.
        num_classes: labels are 0 .. num_classes - 1.
        shards: in their canonical order; the sample order is defined over it.
    """

    image_size: int
    num_classes: int
    shards: tuple[Shard, ...]

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
        path = directory / MANIFEST_NAME
        temporary = path.with_name(f".{MANIFEST_NAME}.tmp")
        body = {"version": SCHEMA_VERSION, **asdict(self)}
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(body, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


def parse_manifest(text: str, source: str) -> Manifest:
    """Parse the text of a `manifest.json`.

    Args:
        text: the JSON text.
        source: where it came from, for messages.

    Raises:
        UserError: not JSON, another schema version, a missing or impossible value.
    """
    try:
        body = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{source}: not JSON ({error}); write the set again") from error
    if not isinstance(body, dict) or body.get("version") != SCHEMA_VERSION:
        found = body.get("version") if isinstance(body, dict) else type(body).__name__
        raise UserError(f"{source}: version {found!r}, expected {SCHEMA_VERSION}; write the set again")
    try:
        shards = tuple(
            Shard(str(s["name"]), int(s["samples"]), int(s["bytes"]), str(s["sha256"])) for s in body["shards"]
        )
        manifest = Manifest(int(body["image_size"]), int(body["num_classes"]), shards)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{source}: bad or missing value {error}; write the set again") from error
    if manifest.num_classes < 1 or manifest.image_size < 1:
        raise UserError(
            f"{source}: num_classes {manifest.num_classes} and image_size {manifest.image_size} must be positive"
        )
    if not manifest.samples:
        raise UserError(f"{source}: the set is empty: {len(shards)} shards hold 0 samples")
    return manifest


def load_manifest(directory: str | Path) -> Manifest:
    """Read the manifest of the set in `directory`.

    Raises:
        UserError: no such directory, no manifest in it, or a bad one.
    """
    directory = Path(directory)
    path = directory / MANIFEST_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        what = "no such directory" if not directory.is_dir() else f"no {MANIFEST_NAME} in it"
        raise UserError(
            f"dataset {directory}: {what}; make a set with `headcount prep`, or correct data.path"
        ) from error
    except OSError as error:
        raise UserError(f"dataset {directory}: cannot read {MANIFEST_NAME}: {error.strerror}") from error
    return parse_manifest(text, str(path))
