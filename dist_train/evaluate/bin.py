"""Reading verification sets in InsightFace's `.bin` form: a pickle that is not allowed to call anything.

The files come from Python 2 and 3 and from several versions of NumPy. The unpickler here never imports what a pickle
names: the few names that such files need are replaced by stand-ins that only hold bytes, all others are refused.
"""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dist_train.errors import UserError

_DTYPES = {"u1": np.uint8, "uint8": np.uint8, "b1": np.bool_, "?": np.bool_, "bool": np.bool_, "i8": np.int64}


@dataclass(frozen=True)
class VerificationSet:
    """Pairs of pictures and whether both show the same identity.

    Attributes:
        name: of the set, from its file.
        images: 2n encoded pictures; pair i is (images[2i], images[2i + 1]).
        same: bool [n].
    """

    name: str
    images: list[bytes]
    same: np.ndarray


class _Dtype:
    """Stands for `numpy.dtype` while unpickling."""

    def __init__(self, code: bytes | str, *_: object) -> None:
        self.code = (code.decode() if isinstance(code, bytes) else code).lstrip("<>|=")

    def __setstate__(self, state: object) -> None:
        """Byte order and flags do not matter for single bytes."""

    def decode(self, data: object) -> np.ndarray:
        """The array that `data` is under this dtype."""
        if self.code in ("O", "O8") and isinstance(data, list):
            return np.fromiter(data, dtype=object, count=len(data))
        if self.code not in _DTYPES or not isinstance(data, bytes | bytearray | str):
            raise pickle.UnpicklingError(f"an array of dtype {self.code!r}; expected uint8 or bool")
        raw = data.encode("latin-1") if isinstance(data, str) else bytes(data)
        return np.frombuffer(raw, dtype=_DTYPES[self.code])


class _Array:
    """Stands for `numpy.ndarray` while unpickling; `value` is the array."""

    value: np.ndarray

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        self.value = dtype.decode(data).reshape(shape, order="F" if fortran else "C")


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _from_buffer(buffer: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str, *_: object) -> _Array:
    array = _Array()
    array.value = dtype.decode(bytes(buffer)).reshape(shape, order="F" if order == "F" else "C")
    return array


def _scalar(dtype: _Dtype, data: object) -> object:
    return dtype.decode(data)[0].item()


def _encode(text: str, encoding: str | bytes = "latin-1") -> bytes:
    # Python 3 writes bytes this way in old protocols; another codec has no business here.
    name = encoding.decode() if isinstance(encoding, bytes) else encoding
    if name not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"text in encoding {name!r}; expected latin1")
    return text.encode("latin-1")


_ADMITTED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
    ("builtins", "bytearray"): bytearray,
    ("__builtin__", "bytearray"): bytearray,
    ("builtins", "bytes"): bytes,
    ("__builtin__", "bytes"): bytes,
}
for _core in ("numpy.core", "numpy._core"):
    _ADMITTED[f"{_core}.multiarray", "_reconstruct"] = _reconstruct
    _ADMITTED[f"{_core}.multiarray", "scalar"] = _scalar
    _ADMITTED[f"{_core}.numeric", "_frombuffer"] = _from_buffer


class _CodeCallError(Exception):
    """A pickle names something that is not data."""


class _DataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        """The stand-in of a name; nothing is ever imported."""
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise _CodeCallError(f"{module}.{name}") from None


def read_bin(path: Path) -> VerificationSet:
    """Read a verification set; no code in the file is run.

    Args:
        path: an InsightFace `.bin`: a pickle of (2n encoded pictures, n booleans).

    Raises:
        UserError: missing, cut off, not such a pickle, one that calls code, or with counts that do not fit.
    """
    try:
        with path.open("rb") as file:
            body = _DataUnpickler(file, encoding="bytes").load()
    except OSError as error:
        raise UserError(f"verification set {path}: {error.strerror}") from error
    except _CodeCallError as error:
        raise UserError(
            f"verification set {path}: its pickle calls {error}, which no such set needs; refused, nothing was run"
        ) from error
    except Exception as error:  # a damaged pickle can raise anything from EOFError to KeyError
        reason = "the file is cut off" if isinstance(error, EOFError) or "truncated" in str(error) else str(error)
        raise UserError(f"verification set {path}: not a readable .bin: {reason or type(error).__name__}") from error
    return _checked(path, body)


def _checked(path: Path, body: object) -> VerificationSet:
    if not isinstance(body, tuple | list) or len(body) != 2:
        raise UserError(f"verification set {path}: holds {type(body).__name__}, expected (pictures, same)")
    images, same = (_plain(part) for part in body)
    if not isinstance(images, list | np.ndarray) or not isinstance(same, list | np.ndarray):
        raise UserError(
            f"verification set {path}: holds ({type(images).__name__}, {type(same).__name__}), expected two lists"
        )
    if len(images) % 2 or len(images) != 2 * len(same):
        raise UserError(
            f"verification set {path}: {len(images)} pictures for {len(same)} pairs, expected {2 * len(same)}; "
            "the file was made wrongly"
        )
    if not len(same):
        raise UserError(f"verification set {path}: it is empty")
    pictures = [_picture(path, number, _plain(image)) for number, image in enumerate(images)]
    flags = np.array([_plain(flag) for flag in same])
    if flags.ndim != 1 or not np.isin(flags, (0, 1)).all():
        raise UserError(f"verification set {path}: the second list must hold n booleans")
    return VerificationSet(path.stem, pictures, flags.astype(bool))


def _plain(value: object) -> object:
    return value.value if isinstance(value, _Array) else value


def _picture(path: Path, number: int, image: object) -> bytes:
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 1:
        return image.tobytes()
    if not isinstance(image, bytes | bytearray):
        shape = f" {image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else ""
        raise UserError(
            f"verification set {path}: picture {number} is {type(image).__name__}{shape}, expected an encoded picture"
        )
    return bytes(image)
