"""The `.metadata` of a checkpoint, a pickle by `torch.distributed.checkpoint`, read without running what it names.

Torch reads it with Python's own unpickler, which calls whatever the file says. Here the names that such a file needs
are bound to stand-ins that only hold values; what they hold is checked and then put into torch's own classes.
"""

import math
import pickle
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from dist_train.errors import UserError, WorkError
from dist_train.run_files import METADATA_NAME
from dist_train.runtime.files import plain_name, read_bounded
from dist_train.runtime.safe_pickle import ForbiddenNameError, unpickle
from dist_train.runtime.text import shown

_MAX_BYTES = 64 << 20
_MAX_STEPS = 5_000_000  # of the unpickler: some 45,000 tensors, or shares of tensors
_MAX_DIMENSIONS = 8
_MAX_INT = 1 << 62


def read_metadata(checkpoint: Path) -> Metadata:
    """What tensors a checkpoint holds, and where.

    Raises:
        WorkError: missing or damaged, it names code, its tensors are not where it says, or it names files elsewhere.
    """
    path = checkpoint / METADATA_NAME
    try:
        body = unpickle(read_bounded(path, _MAX_BYTES), _ADMITTED, steps=_MAX_STEPS)
    except ForbiddenNameError as error:
        raise WorkError(
            f"{path}: its pickle calls {error}, which no checkpoint needs; refused, nothing was run"
        ) from error
    except pickle.UnpicklingError as error:
        raise WorkError(f"{path}: damaged: {error}; resume from another checkpoint") from error
    except OSError as error:
        raise WorkError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise WorkError(f"{path}: {error}") from error
    return _Checked(checkpoint, path).metadata(body)


def read_tensors(checkpoint: Path) -> dict[str, TensorStorageMetadata]:
    """Size, dtype and shares of each tensor in a checkpoint, by its name.

    Raises:
        WorkError: as `read_metadata`.
    """
    entries = read_metadata(checkpoint).state_dict_metadata
    return {name: entry for name, entry in entries.items() if isinstance(entry, TensorStorageMetadata)}


class _Fields:
    """Stands for an object of torch while unpickling: the values that the file sets on it."""

    values: Mapping[Any, Any] = MappingProxyType({})

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError(f"the state of {type(self).__name__} is {type(state).__name__}")
        self.values = state


class _Metadata(_Fields):
    pass


class _Tensor(_Fields):
    pass


class _Chunk(_Fields):
    pass


class _Index(_Fields):
    pass


class _Info(_Fields):
    pass


class _Object(_Fields):
    """An entry that is not a tensor, or the note of who wrote the file."""


class _Properties(_Fields):
    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or not state:
            raise pickle.UnpicklingError(f"the properties of a tensor are {shown(state)}")
        self.values = {"dtype": state[0]}


def _size(*sizes: object) -> torch.Size:
    values = sizes[0] if len(sizes) == 1 else ()
    if not isinstance(values, tuple | list) or len(values) > _MAX_DIMENSIONS or not all(map(_is_count, values)):
        raise pickle.UnpicklingError(f"a size of {shown(values)}")
    return torch.Size(values)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < _MAX_INT


def _nothing(*_: object) -> None:
    """In place of values that are not used: a layout, a memory format, the path that was written to."""


def _memory_format(kind: object, name: object) -> None:
    """In place of `getattr(ENUM, NAME)`, by which Python before 3.11.4, as Debian 12 has it, writes a member."""
    if kind is not _nothing or not isinstance(name, str):
        raise ForbiddenNameError("builtins.getattr")


_METADATA = "torch.distributed.checkpoint.metadata"
_ADMITTED: dict[tuple[str, str], Any] = {
    (_METADATA, "Metadata"): _Metadata,
    (_METADATA, "MetadataIndex"): _Index,
    (_METADATA, "TensorStorageMetadata"): _Tensor,
    (_METADATA, "TensorProperties"): _Properties,
    (_METADATA, "ChunkStorageMetadata"): _Chunk,
    (_METADATA, "BytesStorageMetadata"): _Object,
    (_METADATA, "StorageMeta"): _Object,
    (_METADATA, "_MEM_FORMAT_ENCODING"): _nothing,
    ("builtins", "getattr"): _memory_format,
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"): _Info,
    ("torch", "Size"): _size,
    ("torch.serialization", "_get_layout"): _nothing,
    **{(module, name): _nothing for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "WindowsPath")},
    **{("torch", name): kind for name, kind in vars(torch).items() if isinstance(kind, torch.dtype)},
}


class _Checked:
    """Puts what an unpickled file holds into torch's classes, piece by piece, and refuses what does not fit."""

    def __init__(self, checkpoint: Path, path: Path) -> None:
        self._checkpoint, self._path = checkpoint, path
        self._file_sizes: dict[str, int | None] = {}

    def metadata(self, body: object) -> Metadata:
        fields = self._fields(body, _Metadata, "all of it")
        places = dict(self._places(fields.get("storage_data")))
        tensors = fields.get("state_dict_metadata")
        if not isinstance(tensors, dict) or not tensors:
            self._refuse(f"its list of tensors is {shown(tensors)}")
        checked = {self._text(name): self._tensor(name, entry, places) for name, entry in tensors.items()}
        storage = {MetadataIndex(name, offset): info for (name, offset), info in places.items()}
        return Metadata({**checked}, storage_data=storage)

    def _places(self, storage: object) -> Iterator[tuple[tuple[str, torch.Size], _StorageInfo]]:
        if not isinstance(storage, dict):
            self._refuse(f"its list of places is {shown(storage)}")
        for key, value in storage.items():
            index = self._fields(key, _Index, "a key of its places")
            name, offset = self._text(index.get("fqn")), index.get("offset")
            if offset is not None:  # None: no tensor, and refused as such
                yield (
                    (name, self._sized(name, offset)),
                    self._info(name, self._fields(value, _Info, f"place of {name}")),
                )

    def _info(self, tensor: str, fields: Mapping[Any, Any]) -> _StorageInfo:
        if fields.get("transform_descriptors"):
            self._refuse(f"tensor {shown(tensor)} is compressed, as no checkpoint of this trainer is")
        try:
            file = plain_name(fields.get("relative_path"), str(self._path))
        except UserError as error:
            raise WorkError(str(error)) from None
        offset, length = (self._count(tensor, fields.get(key)) for key in ("offset", "length"))
        size = self._file_size(file)
        if size is not None and offset + length > size:
            self._refuse(f"tensor {shown(tensor)} ends at byte {offset + length} of {file}, which has {size}")
        return _StorageInfo(file, offset, length)

    def _file_size(self, name: str) -> int | None:
        """Size of one of the checkpoint's files; None where it is not there, which is found out when it is needed."""
        if name not in self._file_sizes:
            try:
                status = (self._checkpoint / name).lstat()
            except OSError:
                self._file_sizes[name] = None
            else:
                if not stat.S_ISREG(status.st_mode):
                    self._refuse(
                        f"{name} is a link or a device, expected a file; copy the run with what is linked: cp -rL"
                    )
                self._file_sizes[name] = status.st_size
        return self._file_sizes[name]

    def _tensor(
        self, name: str, entry: object, places: dict[tuple[str, torch.Size], _StorageInfo]
    ) -> TensorStorageMetadata:
        fields = self._fields(entry, _Tensor, f"{name}, expected a tensor,")
        size = self._sized(name, fields.get("size"))
        kind = self._fields(fields.get("properties"), _Properties, f"the properties of {name}").get("dtype")
        if not isinstance(kind, torch.dtype):
            self._refuse(f"the dtype of {name} is {shown(kind)}")
        chunks = fields.get("chunks")
        if not isinstance(chunks, list):
            self._refuse(f"the shares of {name} are {shown(chunks)}")
        found = []
        for chunk in chunks:
            share = self._fields(chunk, _Chunk, f"a share of {name}")
            offsets, sizes = (self._sized(name, share.get(key)) for key in ("offsets", "sizes"))
            inside = len(offsets) == len(sizes) == len(size) and all(
                start + count <= stop for start, count, stop in zip(offsets, sizes, size, strict=True)
            )
            if not inside:
                self._refuse(f"a share {list(sizes)} of {name} at {list(offsets)} is outside of {list(size)}")
            place = places.get((name, offsets))
            if place is None or place.length < math.prod(sizes) * kind.itemsize:
                self._refuse(f"{name} {list(sizes)} at {list(offsets)}: {place.length if place else 'no'} bytes of it")
            found.append(ChunkStorageMetadata(offsets, sizes))
        if sum(math.prod(chunk.sizes) for chunk in found) != math.prod(size):
            self._refuse(f"the {len(found)} shares of {name} do not make up {list(size)}")
        return TensorStorageMetadata(TensorProperties(dtype=kind), size, found)

    def _fields(self, value: object, kind: type[_Fields], what: str) -> Mapping[Any, Any]:
        if not isinstance(value, kind):
            self._refuse(f"{shown(what)} is {type(value).__name__.lstrip('_')}")
        return value.values

    def _count(self, name: str, value: object) -> int:
        if not isinstance(value, int) or not _is_count(value):
            self._refuse(f"tensor {shown(name)} is at {shown(value)}")
        return value

    def _sized(self, name: str, value: object) -> torch.Size:
        if not isinstance(value, torch.Size):
            self._refuse(f"a size of {name} is {shown(value)}")
        return value

    def _text(self, value: object) -> str:
        if not isinstance(value, str):
            self._refuse(f"a tensor is named {shown(value)}")
        return value

    def _refuse(self, what: str) -> NoReturn:
        raise WorkError(f"{self._path}: damaged or made by something else: {what}; take another checkpoint")
