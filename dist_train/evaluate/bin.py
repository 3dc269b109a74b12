"""Reading verification sets in InsightFace's `.bin` form: a pickle that is not allowed to call anything.

The files come from Python 2 and 3 and from several versions of NumPy. Nothing that a pickle names is imported: the few
names that such files need are replaced by stand-ins that only hold bytes, all others are refused. A picture that a file
refers to a thousand times is there once.
"""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dist_train.errors import UserError
from dist_train.evaluate.config import set_name
from dist_train.runtime.safe_pickle import Admitted, ForbiddenNameError, unpickle
from dist_train.runtime.text import shown_start

_DTYPES = {"u1": np.uint8, "uint8": np.uint8, "b1": np.bool_, "?": np.bool_, "bool": np.bool_, "i8": np.int64}
_LARGEST_RANK = 8  # of an array
_SPARE_BYTES = 1 << 20


@dataclass(frozen=True)
class VerificationSet:
    """Pairs of pictures and whether both show the same identity.

    Attributes:
        name: of the set, from its file, as `set_name` gives it.
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


class _Array:
    """Stands for `numpy.ndarray` while unpickling; `value` is the array once it is set."""

    def __init__(self, stand_ins: "_StandIns") -> None:
        self._stand_ins = stand_ins
        self.value: np.ndarray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        self.value = self._stand_ins.array(data, dtype, shape, "F" if fortran else "C")


class _StandIns:
    """What the admitted names of one file stand for. All that they make together is bounded by the file's size.

    Args:
        size: of the file in bytes.
    """

    def __init__(self, size: int) -> None:
        # Python 3 wrote bytes as text for old protocols: each is made once more, and once again for an array.
        self._left = 2 * size + _SPARE_BYTES

    def admitted(self) -> Admitted:
        """The table for the unpickler."""
        names: dict[tuple[str, str], Any] = {
            ("numpy", "ndarray"): None,  # an argument of `_reconstruct`
            ("numpy", "dtype"): _Dtype,
            ("_codecs", "encode"): self.encoded,
        }
        for builtins in ("builtins", "__builtin__"):
            names[builtins, "bytearray"] = names[builtins, "bytes"] = self.joined
        for core in ("numpy.core", "numpy._core"):
            names[f"{core}.multiarray", "_reconstruct"] = lambda *_: _Array(self)
            names[f"{core}.multiarray", "scalar"] = self.scalar
            names[f"{core}.numeric", "_frombuffer"] = self.from_buffer
        return names

    def _take(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise pickle.UnpicklingError("what it makes is far larger than the file")

    def encoded(self, text: str, encoding: str | bytes = "latin-1") -> bytes:
        """Bytes as Python 3 writes them in old protocols; another codec has no business here."""
        name = encoding.decode() if isinstance(encoding, bytes) else encoding
        if name not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError(f"text in encoding {shown_start(name)!r}; expected latin1")
        self._take(len(text))
        return text.encode("latin-1")

    def joined(self, data: bytes | bytearray | str = b"", encoding: str | bytes = "latin-1") -> bytes:
        """What `bytes` and `bytearray` are called with: bytes or text, never a length."""
        if isinstance(data, str):
            return self.encoded(data, encoding)
        if not isinstance(data, bytes | bytearray):
            raise pickle.UnpicklingError(f"bytes of {type(data).__name__}")
        self._take(len(data))
        return bytes(data)

    def array(self, data: object, dtype: _Dtype, shape: object, order: str) -> np.ndarray:
        """The array that `data` is; it shares the memory of bytes."""
        if not isinstance(shape, tuple) or len(shape) > _LARGEST_RANK or not all(isinstance(n, int) for n in shape):
            raise pickle.UnpicklingError("an array whose shape is not a tuple of a few numbers")
        layout: Any = "F" if order == "F" else "C"
        if dtype.code in ("O", "O8") and isinstance(data, list):
            self._take(8 * len(data))
            return np.fromiter(data, dtype=object, count=len(data)).reshape(shape, order=layout)
        if dtype.code not in _DTYPES or not isinstance(data, bytes | bytearray | str):
            raise pickle.UnpicklingError(f"an array of dtype {shown_start(dtype.code)!r}; expected uint8 or bool")
        raw = self.encoded(data) if isinstance(data, str) else data
        return np.frombuffer(raw, dtype=_DTYPES[dtype.code]).reshape(shape, order=layout)

    def from_buffer(self, buffer: object, dtype: _Dtype, shape: object, order: str, *_: object) -> _Array:
        """An array of protocol 5."""
        made = _Array(self)
        made.value = self.array(buffer, dtype, shape, order)
        return made

    def scalar(self, dtype: _Dtype, data: object) -> object:
        """A number."""
        return self.array(data, dtype, (1,), "C")[0].item()


def read_bin(path: Path) -> VerificationSet:
    """Read a verification set; no code in the file is run.

    Args:
        path: an InsightFace `.bin`: a pickle of (2n encoded pictures, n booleans). A picture is bytes, or a uint8 array
            of one axis, or of a second one of length 1.

    Raises:
        UserError: missing, cut off, not such a pickle, one that calls code, or with counts that do not fit.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"verification set {path}: not a file")
        data = path.read_bytes()
        body = unpickle(data, _StandIns(len(data)).admitted(), encoding="bytes")
    except OSError as error:
        raise UserError(f"verification set {path}: {error.strerror}") from error
    except ForbiddenNameError as error:
        raise UserError(
            f"verification set {path}: its pickle calls {error}, which no such set needs; refused, nothing was run"
        ) from error
    except pickle.UnpicklingError as error:
        raise UserError(f"verification set {path}: not a readable .bin: {error}") from error
    return _checked(path, body)


def _checked(path: Path, body: object) -> VerificationSet:
    if not isinstance(body, tuple | list) or len(body) != 2:
        raise UserError(f"verification set {path}: holds {type(body).__name__}, expected (pictures, same)")
    images, same = (_listed(part) for part in body)
    if images is None or same is None:
        names = ", ".join(type(_plain(part)).__name__ for part in body)
        raise UserError(f"verification set {path}: holds ({names}), expected two lists")
    if len(images) % 2 or len(images) != 2 * len(same):
        raise UserError(
            f"verification set {path}: {len(images)} pictures for {len(same)} pairs, expected {2 * len(same)}; "
            "the file was made wrongly"
        )
    if not len(same):
        raise UserError(f"verification set {path}: it is empty")
    if not all(isinstance(flag, int | float) and flag in (0, 1) for flag in same):
        raise UserError(f"verification set {path}: the second list must hold n booleans")
    return VerificationSet(set_name(path), _pictures(path, images), np.array(same, dtype=float) == 1)


def _plain(value: object) -> object:
    return value.value if isinstance(value, _Array) else value


def _listed(part: object) -> list[Any] | None:
    """The entries of a list or of an array; None of anything else."""
    plain = _plain(part)
    if isinstance(plain, np.ndarray) and plain.ndim:
        # Numbers as Python's own; rows of an array of pictures stay arrays.
        return list(plain) if plain.ndim > 1 else plain.tolist()
    return plain if isinstance(plain, list) else None


def _pictures(path: Path, images: Sequence[object]) -> list[bytes]:
    """Every picture's bytes; those that a file has once and refers to often are made once."""
    made: dict[int, bytes] = {}
    for number, image in enumerate(images):
        if id(image) not in made:
            made[id(image)] = _picture(path, number, _plain(image))
    return [made[id(image)] for image in images]


def _picture(path: Path, number: int, image: object) -> bytes:
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim and image.size == image.shape[0]:
        return image.tobytes()
    if not isinstance(image, bytes | bytearray):
        shape = f" {image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else ""
        raise UserError(
            f"verification set {path}: picture {number} is {type(image).__name__}{shape}, expected an encoded picture"
        )
    return bytes(image)
