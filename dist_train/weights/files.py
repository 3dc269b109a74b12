"""Files of weights as they are read: safetensors, or a state dict by `torch.save`, by whomever they were written.

Nothing that a file names is run, and nothing in it takes more memory or time than its size.
"""

import os
import pickle
import stat
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dist_train.errors import UserError
from dist_train.runtime.safe_pickle import Admitted, ForbiddenNameError, unpickle
from dist_train.runtime.text import first_line, shown, shown_start

PICKLED = (".pt", ".pth", ".bin", ".ckpt")
SUFFIXES = (".safetensors", *PICKLED)

_MAX_BYTES = 64 << 30  # of a file, which is mapped and not read whole
_MAX_HEAD = 8 << 20  # of the list of tensors: some 30,000 of them
_MAX_STEPS = 2_000_000  # of the unpickler, about a minute
# Where projects put a network's state dict in a file that holds more.
_WRAPPERS = ("state_dict_backbone", "state_dict", "model_state_dict", "model", "backbone")
_PREFIXES = ("module.", "_orig_mod.", "backbone.")


@dataclass(frozen=True, slots=True)
class Weights:
    """What a file of weights holds.

    Attributes:
        state: tensors by name, on the CPU, of any dtype and shape; mapped from the file, so to be copied soon.
        about: text that a safetensors file says of itself; {} for other files.
    """

    state: dict[str, Tensor]
    about: dict[str, str]


def read_weights(path: Path) -> Weights:
    """The tensors of a file, without wrappers and the prefixes that DDP, `torch.compile` and whole models put on names.

    Raises:
        UserError: no such file, another kind of file, a damaged one, one that names code, or one without weights.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: not a file of weights; expected a name that ends in {', '.join(SUFFIXES)}")
    try:
        # Non-blocking: a pipe in place of a file is refused, not waited for.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            size = _size_of(path, file)
            if path.suffix == ".safetensors":
                return _read_safetensors(path, file, size)
            _check_archive(path, file)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or first_line(error)}") from error
    return Weights(_plain(path, _load(path)), {})


def _size_of(path: Path, file: IO[bytes]) -> int:
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path}: a pipe, a device or a directory, expected a file of weights")
    if status.st_size > _MAX_BYTES:
        raise UserError(f"{path}: {status.st_size >> 30} GiB, expected at most {_MAX_BYTES >> 30}; refused")
    return status.st_size


def _read_safetensors(path: Path, file: IO[bytes], size: int) -> Weights:
    head = int.from_bytes(file.read(8), "little")
    if head > min(size, _MAX_HEAD):
        raise UserError(
            f"{path}: its header claims {head:,} bytes, expected at most {min(size, _MAX_HEAD):,}; it is cut off, or "
            "no safetensors file"
        )
    try:
        with safe_open(path, framework="pt", device="cpu") as opened:
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no dictionary
            about = opened.metadata() or {}
    except SafetensorError as error:
        raise UserError(f"{path}: cut off, or no safetensors file ({shown_start(first_line(error))})") from error
    except Exception as error:  # whatever its binding to torch raises
        raise UserError(f"{path}: cannot be read ({shown_start(first_line(error))})") from error
    return Weights(_plain(path, state), about)


def _check_archive(path: Path, file: IO[bytes]) -> None:
    """See that a file is what `torch.save` makes of tensors, before torch reads it.

    `torch.load(weights_only=True)` runs no code, but takes compressed entries, arrays of any length, and keys that take
    for ever to hash.

    Raises:
        UserError: it is not.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
            records = [entry for entry in archive.infolist() if entry.filename.endswith(".pkl")]
            if len(sizes) != len(archive.infolist()) or len(records) != 1:
                raise UserError(f"{path}: an archive with {len(records)} pickles, expected 1; save a state dict alone")
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise UserError(f"{path}: a compressed archive, which torch.save does not write; refused")
            if records[0].file_size > _MAX_HEAD:
                raise UserError(
                    f"{path}: {records[0].filename} has {records[0].file_size:,} bytes, expected at most {_MAX_HEAD:,}"
                )
            folder, record = records[0].filename.rpartition("/")[0], archive.read(records[0])
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: no file by torch.save, or cut off ({shown_start(first_line(error))}); one that torch wrote "
            "before 1.6 must be saved anew by a newer one"
        ) from error

    def outside(word: object) -> None:
        """A tensor's numbers, which must be in the archive."""
        kind, _, key, _, count = cast(tuple[Any, ...], word)
        if kind != "storage" or type(count) is not int or not 0 <= count <= sizes[f"{folder}/data/{key!s}"]:
            raise pickle.UnpicklingError(f"numbers that are not there: {shown(key)}")

    try:
        unpickle(record, _ADMITTED, steps=_MAX_STEPS, outside=outside)
    except ForbiddenNameError as error:
        raise UserError(
            f"{path}: its pickle calls {error}, which no weights need; refused, nothing was run; expected a plain "
            "state dict, as torch.save(network.state_dict(), FILE) writes it"
        ) from error
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: damaged: {error}") from error


class _Dictionary(dict[Any, Any]):
    """Stands for an `OrderedDict`, which is made empty and filled by the pickle."""

    def __init__(self, *arguments: object) -> None:
        if arguments:
            raise pickle.UnpicklingError("a dictionary made at once")
        super().__init__()


def _nothing(*_: object) -> None:
    """Stands for all that only torch has to make."""


_ADMITTED: Admitted = {
    ("collections", "OrderedDict"): _Dictionary,
    ("torch._utils", "_rebuild_tensor_v2"): _nothing,
    ("torch._utils", "_rebuild_parameter"): _nothing,
    ("torch", "Size"): _nothing,
    ("torch", "device"): _nothing,
    **{("torch", name): None for name in vars(torch) if name.endswith("Storage")},
    **{("torch", name): None for name, kind in vars(torch).items() if isinstance(kind, torch.dtype)},
}


def _load(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises anything from RuntimeError to KeyError for a file that is damaged
        raise UserError(f"{path}: damaged: {shown_start(first_line(error))}") from error


def _plain(path: Path, found: object) -> dict[str, Tensor]:
    """The state dict in what a file holds, under the network's own names."""
    state, top = _tensors(found), found
    while not state and isinstance(top, Mapping):
        wrapper = next((key for key in _WRAPPERS if isinstance(top.get(key), Mapping)), None)
        if wrapper is None:
            break
        top = top[wrapper]
        state = _tensors(top)
    if not state:
        keys = ", ".join(shown(key) for key in list(found)[:8]) if isinstance(found, Mapping) else type(found).__name__
        raise UserError(
            f"{path}: no weights of a network in it; found {keys or 'nothing'}; expected a state dict, tensors by "
            f"name, or one under {', '.join(_WRAPPERS)}"
        )
    for name, tensor in state.items():
        if tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
            raise UserError(f"{path}: {shown(name)} claims more numbers than are there; refused")
    return _without_prefixes(path, state)


def _tensors(found: object) -> dict[str, Tensor]:
    """The named tensors right in a dictionary; a whole file's steps and settings lie beside them."""
    if not isinstance(found, Mapping):
        return {}
    return {
        name: tensor
        for name, tensor in found.items()
        if isinstance(name, str) and isinstance(tensor, Tensor) and tensor.layout == torch.strided
    }


def _without_prefixes(path: Path, state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        # Where a network has a prefix, what has none is not of the network, e.g. a head or a count of averaged steps.
        stripped = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        state = stripped or state
    return state
