"""Reading a whole set of shards in its stored order, with each sample's label and role."""

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from dist_train.data.index import Member, read_index
from dist_train.data.manifest import Manifest, load_manifest
from dist_train.errors import UserError, WorkError

_IMAGES = frozenset({"jpg", "jpeg", "png", "webp"})
ROLES = ("gallery", "probe")


class StoredSet:
    """The samples of a set by number, in the order of shards and of samples in them.

    Args:
        directory: a set of shards.

    Raises:
        UserError: no such set, or a sample without a picture.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.manifest: Manifest = load_manifest(directory)
        self._files: list[int] = []
        self._samples: list[tuple[int, dict[str, Member]]] = []
        for number, shard in enumerate(self.manifest.shards):
            path = directory / shard.name
            try:
                self._files.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            except OSError as error:
                self.close()
                raise UserError(f"shard {path}: {error.strerror}; run `headcount data verify`") from error
            members = read_index(path.with_suffix(".idx"))
            self._samples += [(number, {member.extension: member for member in sample}) for sample in members]

    def __len__(self) -> int:
        return len(self._samples)

    def read(self, number: int) -> bytes:
        """The encoded picture of a sample."""
        file, members = self._samples[number]
        for extension, member in members.items():
            if extension in _IMAGES:
                return self._bytes(file, member)
        raise WorkError(f"set {self.directory}: sample {self.key(number)} has no picture")

    def label(self, number: int) -> int:
        """The class number of a sample."""
        text = self._text(number, "cls").strip()
        if not text.isdigit():
            raise WorkError(f"set {self.directory}: sample {self.key(number)} has label {text[:40]!r}")
        return int(text)

    def record(self, number: int) -> dict[str, object]:
        """The `.json` of a sample; empty without one."""
        if "json" not in self._samples[number][1]:
            return {}
        try:
            body = json.loads(self._text(number, "json"))
        except ValueError as error:
            raise WorkError(f"set {self.directory}: sample {self.key(number)}: .json: {error}") from error
        return body if isinstance(body, dict) else {}

    def key(self, number: int) -> str:
        """The name of a sample's members without their extension."""
        first = next(iter(self._samples[number][1].values()))
        return first.name.rsplit("/", 1)[-1].split(".", 1)[0]

    def _text(self, number: int, extension: str) -> str:
        file, members = self._samples[number]
        if extension not in members:
            raise WorkError(f"set {self.directory}: sample {self.key(number)} has no .{extension}")
        return self._bytes(file, members[extension]).decode(errors="replace")

    def _bytes(self, file: int, member: Member) -> bytes:
        data = os.pread(self._files[file], member.size, member.offset)
        if len(data) != member.size:
            raise WorkError(
                f"set {self.directory}: {member.name} ends after {len(data)} of {member.size} bytes; "
                "run `headcount data verify`"
            )
        return data

    def close(self) -> None:
        """Close the shards."""
        while self._files:
            os.close(self._files.pop())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class RoleSet(StoredSet):
    """A set for identification: every sample belongs to the gallery or is a probe.

    Attributes:
        labels: int64 [N].
        is_gallery: bool [N].

    Raises:
        UserError: no such set, samples without a role, or no gallery or no probes.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        numbers = range(len(self))
        roles = [self.record(number).get("role") for number in numbers]
        for number, role in enumerate(roles):
            if role not in ROLES:
                self.close()
                raise UserError(
                    f"identification set {directory}: sample {self.key(number)} has role {role!r} in its .json, "
                    f"expected one of {ROLES}"
                )
        self.labels = np.array([self.label(number) for number in numbers], dtype=np.int64)
        self.is_gallery = np.array([role == "gallery" for role in roles])
        if self.is_gallery.all() or not self.is_gallery.any():
            count = int(self.is_gallery.sum())
            self.close()
            raise UserError(
                f"identification set {directory}: {count} gallery pictures and {len(self) - count} probes; "
                "expected some of both"
            )
