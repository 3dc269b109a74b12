"""What is fuzzed: a reader of the product, and the files that it is given."""

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dist_train.data.shards import BadSampleError
from dist_train.errors import UserError, WorkError
from tests.fuzz.mutations import Mutation


class RefusedError(Exception):
    """An input was refused by a return value, e.g. a `Reject`."""


REFUSALS = (UserError, WorkError, BadSampleError, RefusedError)
"""How the product refuses an input; anything else that is raised is a fault."""


class Scene(NamedTuple):
    """Sound files that a reader accepts.

    Attributes:
        files: content by path.
        target: the file that is changed; the others stay as they are.
    """

    files: Mapping[str, bytes]
    target: str


class Reader(NamedTuple):
    """A reader of the product.

    Attributes:
        name: in the table and on the command line.
        scenes: makes the seeds; called once in a process.
        read: has the product read the files in a directory, as its commands do.
        mutations: what is done to the target.
        weight: share of the inputs; below 1 for a slow reader.
    """

    name: str
    scenes: Callable[[], Sequence[Scene]]
    read: Callable[[Path], object]
    mutations: Sequence[Mutation]
    weight: float = 1.0


FIXED = Path(tempfile.gettempdir()) / f"headcount-fuzz-{os.getuid()}"
"""For files that others name by their full path: with another path in them, a seed would not give the same input."""


def put(name: str, content: bytes) -> Path:
    """A file in `FIXED`; several processes may put it there at once."""
    path = FIXED / name
    if not path.exists() or path.read_bytes() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_bytes(content)
        temporary.replace(path)
    return path


def files_in(directory: Path) -> dict[str, bytes]:
    """All files below `directory`, by path; the target of a scene is written last, so it is never older than they."""
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def each_target(files: Mapping[str, bytes], *targets: str) -> list[Scene]:
    """A scene per target."""
    return [Scene(files, target) for target in targets]
