"""Files of weights as they are written: safetensors, or a plain state dict for `torch.load(weights_only=True)`."""

import io
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from dist_train.errors import UserError
from dist_train.runtime.written import written_output

SUFFIXES = (".safetensors", ".pt")

_KINDS = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ALIGNMENT = 8  # bytes; tensors begin at multiples of it, as `safetensors` itself writes them


@dataclass(frozen=True)
class Blocks:
    """A tensor that is never whole in memory: its rows, block after block.

    Attributes:
        shape: of all of it.
        dtype: of its numbers.
        blocks: [n, *shape[1:]] each, on the CPU; their n add up to shape[0].
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    blocks: Iterable[Tensor]

    @classmethod
    def of(cls, tensor: Tensor) -> "Blocks":
        """A whole tensor as one block."""
        whole = tensor.detach().cpu()
        return cls(tuple(whole.shape), whole.dtype, (whole,))


def check_output(path: Path) -> None:
    """See, before any work, that weights can be written to `path`.

    Raises:
        UserError: another suffix, no such directory, or a directory.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"--output {path}: expected a file that ends in {' or '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise UserError(f"--output {path}: no directory {path.parent}; make it first")
    if path.is_dir():
        raise UserError(f"--output {path}: is a directory, expected the name of a file")


def write_weights(path: Path, state: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Write a state dict under its name by rename, in the form that the suffix says.

    Args:
        path: ends in one of `SUFFIXES`.
        state: tensors by name.
        about: text for the header of a safetensors file; a plain state dict has no place for it.

    Raises:
        UserError: another suffix, or no such directory.
        WorkError: the disk refuses.
    """
    check_output(path)
    with written_output(path) as file:
        fill_weights(file, path.suffix, state, about)


def fill_weights(file: IO[bytes], suffix: str, state: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Write a state dict to an open file; see `write_weights`.

    Raises:
        OSError: the disk refuses.
    """
    if suffix == ".safetensors":
        write_safetensors(file, {name: Blocks.of(tensor) for name, tensor in state.items()}, about)
        return
    # By way of memory: torch ends the process when a Python file refuses bytes, and where it opens the file itself it
    # puts the file's name of that moment, with host and process, into the archive.
    archive = io.BytesIO()
    torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, archive)
    file.write(archive.getbuffer())


def write_safetensors(file: IO[bytes], tensors: Mapping[str, Blocks], about: Mapping[str, str]) -> None:
    """Write tensors in the form of the library `safetensors`, equal bytes for equal tensors.

    The library takes whole tensors only, which a large head's centers need not be. It also shuffles `about`, and its
    files can be read by their owner alone. The form: https://github.com/huggingface/safetensors#format.

    Args:
        file: to write to, from its begin.
        tensors: by name.
        about: text for the header.

    Raises:
        OSError: the disk refuses.
        ValueError: blocks that are not the tensor that they belong to.
    """
    header: dict[str, object] = {"__metadata__": dict(sorted(about.items()))}
    end = 0
    # Wide numbers first, so that every tensor is aligned.
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    for name in order:
        each = tensors[name]
        start, end = end, end + math.prod(each.shape) * each.dtype.itemsize
        header[name] = {"dtype": _KINDS[each.dtype], "shape": list(each.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in order:
        missing = math.prod(tensors[name].shape)
        for block in tensors[name].blocks:
            missing -= block.numel()
            if block.dtype != tensors[name].dtype or missing < 0:
                raise ValueError(f"{name}: a block {list(block.shape)} of {block.dtype} too many")
            file.write(block.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        if missing:
            raise ValueError(f"{name}: {missing} numbers missing")
