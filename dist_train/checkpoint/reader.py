"""Loading tensors out of a checkpoint that anybody may have written: tensors alone, nothing that is called."""

import io
import os
import pickletools
import re
import zipfile
from pathlib import Path
from typing import IO, Any, cast

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata

from dist_train.checkpoint.metadata import read_metadata
from dist_train.errors import WorkError

# What `torch.save` names for a tensor. `torch.load(weights_only=True)` admits more, e.g. arrays of any length.
_REBUILD = frozenset({"torch._utils _rebuild_tensor_v2", "collections OrderedDict"})
_STORAGE = re.compile(r"torch [A-Za-z0-9]+Storage")
_MAX_RECORD = 1 << 16  # bytes of the pickle that describes one tensor


def load_tensors(
    state: dict[str, Any], checkpoint: Path, group: dist.ProcessGroup | None = None, *, alone: bool = False
) -> None:
    """Load the tensors of a checkpoint into those of `state`, in place; a collective unless `alone`.

    Args:
        state: nested dicts of tensors or `DTensor`s.
        checkpoint: its directory.
        group: of the ranks that load together.
        alone: this process loads by itself.

    Raises:
        WorkError: the checkpoint names code or files elsewhere, or is damaged.
        Exception, CheckpointException: whatever torch raises where it does not fit.
    """
    dcp.load(state, storage_reader=_Reader(checkpoint), planner=_Planner(), process_group=group, no_dist=alone)


class _Reader(dcp.FileSystemReader):
    """Runs nothing that `.metadata` names, and takes no slice of a file that is more than a tensor by `torch.save`."""

    def __init__(self, checkpoint: Path) -> None:
        super().__init__(checkpoint)
        self._checkpoint = checkpoint
        self._error: WorkError | None = None

    def read_metadata(self) -> Metadata:
        """See `StorageReader`."""
        try:
            return read_metadata(self._checkpoint)
        except WorkError as error:  # raised later: DCP logs what is raised here with a traceback, and looks elsewhere
            self._error = error
            return Metadata({}, storage_data={})

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: object, **kwargs: object) -> None:
        """See `StorageReader`."""
        if self._error is not None:
            raise self._error
        super().set_up_storage_reader(metadata, is_coordinator, *args, **kwargs)

    def _slice_file(self, file: IO[bytes], sinfo: Any) -> Any:  # noqa: ANN401 - torch's private class
        view = FileSlice(cast(io.BufferedIOBase, file), sinfo.offset, sinfo.length)
        try:
            check_record(view)
        except (zipfile.BadZipFile, ValueError, KeyError, RuntimeError) as error:  # of an encrypted entry, too
            place = f"{self._checkpoint / sinfo.relative_path} at byte {sinfo.offset}"
            raise WorkError(f"{place}: {error}; refused, nothing was run") from error
        view.seek(0)
        return view


class _Planner(dcp.DefaultLoadPlanner):
    """Loads tensors only: torch reads anything else with an unpickler that runs what it names."""

    def load_bytes(self, read_item: Any, value: Any) -> None:  # noqa: ANN401 - as in `LoadPlanner`
        """See `LoadPlanner`."""
        raise WorkError(f"{read_item.dest_index.fqn} is not a tensor; refused")


class FileSlice(io.RawIOBase):
    """A part of a file as a file: torch's own cannot be read from its end, where the directory of an archive is."""

    def __init__(self, file: io.BufferedIOBase, start: int, length: int) -> None:
        self._file, self._start, self._length, self._at = file, start, length, 0

    def readable(self) -> bool:
        """See `io.RawIOBase`."""
        return True

    def seekable(self) -> bool:
        """See `io.RawIOBase`."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """See `io.RawIOBase`."""
        begin = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence]
        if begin + offset < 0:
            raise ValueError("a place before its begin")
        self._at = begin + offset
        return self._at

    def readinto(self, buffer: Any, /) -> int:  # noqa: ANN401 - any buffer
        """See `io.RawIOBase`."""
        self._file.seek(self._start + self._at)
        count = int(self._file.readinto(memoryview(buffer)[: max(0, self._length - self._at)]))
        self._at += count
        return count


def check_record(view: io.RawIOBase) -> None:
    """See that a slice is what `torch.save` makes of one tensor: stored uncompressed, no other names than it needs.

    Raises:
        ValueError, zipfile.BadZipFile, KeyError, RuntimeError: it is not.
    """
    with zipfile.ZipFile(cast(IO[bytes], view)) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                raise ValueError(f"{entry.filename} is compressed")
            if entry.filename.endswith(".pkl"):
                if entry.file_size > _MAX_RECORD:
                    raise ValueError(f"{entry.filename} has {entry.file_size} bytes, expected at most {_MAX_RECORD}")
                _check_names(archive.read(entry))


def _check_names(record: bytes) -> None:
    for operation, argument, _ in pickletools.genops(record):
        if operation.name == "GLOBAL" and (argument in _REBUILD or _STORAGE.fullmatch(str(argument))):
            continue
        if operation.name in ("GLOBAL", "STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):
            raise ValueError(f"its pickle calls {argument or operation.name}, which no tensor needs")
