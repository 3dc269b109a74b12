"""Files and directories that appear under their names by rename: complete, or not at all."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from dist_train.errors import WorkError

MAKE_ROOM = "make room and run the same command again: nothing is lost"
_BUFFER_BYTES = 1 << 20


@contextmanager
def written(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to, that is on the disk under its name once the block ends; an error leaves nothing behind.

    Raises:
        OSError: the disk refuses.
    """
    with written_path(path) as temporary, temporary.open("wb", buffering=_BUFFER_BYTES) as file:
        yield file


@contextmanager
def written_path(path: Path) -> Iterator[Path]:
    """As `written`, for libraries that open files themselves: where they have to write.

    Torch is one: its archives end the process when a Python file refuses bytes.

    Raises:
        OSError: the disk refuses.
    """
    # Named by host and process: a worker that outlives its job must not write into the file of its successor.
    temporary = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):  # a file system that refused the file refuses this too
            temporary.unlink()
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file, as `written` does, in UTF-8.

    Raises:
        OSError: the disk refuses.
    """
    with written(path) as file:
        file.write(text.encode())


def write_json(path: Path, body: Any) -> None:  # noqa: ANN401 - any JSON value
    """Write a JSON file for people and programs, as `written` does.

    Raises:
        OSError: the disk refuses.
    """
    write_text(path, json.dumps(body, indent=1) + "\n")


@contextmanager
def written_directory(path: Path) -> Iterator[Path]:
    """A directory to write in, that gets its name once the block ends; an error leaves nothing behind.

    An empty directory of that name is replaced.

    Raises:
        OSError: the disk refuses.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sync_directory(directory: Path) -> None:
    """Wait until the names in a directory are on the disk, as they are now.

    Raises:
        OSError: the disk refuses.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporaries(directory: Path, name: str = "*") -> None:
    """Remove what processes that were killed left of files by `written`. Nobody may be writing them.

    Args:
        directory: of the files.
        name: of the files, up to `.tmp`; `*` in it stands for anything.
    """
    for path in directory.glob(f".{name}.tmp"):
        path.unlink(missing_ok=True)


@contextmanager
def write_failures(what: str, way_out: str = "") -> Iterator[None]:
    """Errors of the disk inside the block become failures that name `what` could not be written.

    Args:
        what: e.g. `report out.html`.
        way_out: what to do about it.

    Raises:
        WorkError: in place of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        advice = f"; {way_out}" if way_out else ""
        raise WorkError(f"{what}: cannot be written: {error.strerror or error}{advice}") from error


@contextmanager
def written_output(path: Path) -> Iterator[IO[bytes]]:
    """As `written`, for what a user asked for: where the disk refuses, the message says how to go on.

    Raises:
        WorkError: the disk refuses.
    """
    with write_failures(str(path), MAKE_ROOM), written(path) as file:
        yield file
