"""Unpickling of what others wrote: nothing is imported, nothing runs but what the caller admits, memory is bounded.

Python's own unpickler in C makes its memo as long as the greatest number a file names and an array as long as a file
claims, before it reads a byte; fourteen bytes take gigabytes. The one written in Python keeps a dictionary, so it is
taken here, and limited: the steps it may make, the keys a dictionary may have, the objects a state may be set on.
"""

import pickle
from collections.abc import Callable, Mapping
from typing import Any

from dist_train.runtime.text import shown_start

_STEPS = 1_000_000  # and one more for every 64 bytes; a step makes at most some 250 bytes beside those it reads
_BYTES_PER_STEP = 64
_KEY_MEMBERS = 64
_KEY_BITS = 64

Admitted = Mapping[tuple[str, str], Any]
"""What a pickle may name: (module, name), as written in the file -> the value that stands for it."""


class ForbiddenNameError(pickle.UnpicklingError):
    """A pickle names something that is not admitted; the message is the name."""


def unpickle(
    data: bytes,
    admitted: Admitted,
    *,
    encoding: str = "ASCII",
    steps: int | None = None,
    outside: Callable[[object], object] | None = None,
) -> Any:  # noqa: ANN401
    """The object that a pickle of any protocol holds.

    Args:
        data: the whole pickle.
        admitted: what it may name. A value that is called must refuse arguments that it does not expect, and must not
            make more of them than they are; a class whose hash depends on its contents must check them when set.
        encoding: of byte strings that Python 2 wrote; "bytes" leaves them bytes.
        steps: the most instructions; default: a million, and one for every 64 bytes.
        outside: gives what the file keeps outside of the pickle, as torch does numbers, for the pickle's word for it;
            default: nothing is.

    Raises:
        ForbiddenNameError: it names something else; nothing was called for it.
        pickle.UnpicklingError: it is cut off, damaged, or asks for more than is given; the message is one line.
    """
    limit = _STEPS + len(data) // _BYTES_PER_STEP if steps is None else steps
    try:
        return _Unpickler(_Bytes(data), admitted, encoding, limit, outside).load()
    except ForbiddenNameError:
        raise
    except EOFError as error:
        raise pickle.UnpicklingError("the file is cut off") from error
    except Exception as error:  # a damaged pickle can raise anything from KeyError to MemoryError
        raise pickle.UnpicklingError(shown_start(str(error)) or type(error).__name__) from error


class _Bytes:
    """Bytes as a file that gives what is asked for or says that it ends."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def read(self, size: int, /) -> bytes:
        if size > len(self._data) - self._at:
            raise EOFError
        start, self._at = self._at, self._at + size
        return self._data[start : self._at]

    def readline(self) -> bytes:
        end = self._data.find(b"\n", self._at) + 1
        if not end:
            raise EOFError
        start, self._at = self._at, end
        return self._data[start:end]


class _Counted(dict[int, Callable[..., None]]):
    """The unpickler's table of instructions, good for so many."""

    def __init__(self, table: Mapping[int, Callable[..., None]], steps: int) -> None:
        super().__init__(table)
        self._left = self._steps = steps

    def __getitem__(self, code: int) -> Callable[..., None]:
        self._left -= 1
        if self._left < 0:
            raise pickle.UnpicklingError(f"more than {self._steps:,} steps, too many for its size")
        return super().__getitem__(code)

    def __missing__(self, code: int) -> Callable[..., None]:
        raise pickle.UnpicklingError(f"instruction 0x{code:02x} is none")


class _Unpickler(pickle._Unpickler):
    """Python's unpickler with a table of names in place of imports."""

    # Of the class below, whose types the standard library does not tell.
    stack: list[Any]
    read: Callable[[int], bytes]
    pop_mark: Callable[[], list[Any]]

    def __init__(
        self,
        file: _Bytes,
        admitted: Admitted,
        encoding: str,
        steps: int,
        outside: Callable[[object], object] | None,
    ) -> None:
        super().__init__(file, encoding=encoding)
        self._admitted, self._outside = admitted, outside
        self.dispatch = _Counted(_INSTRUCTIONS, steps)  # type: ignore[misc]  # read once, when loading begins

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401
        try:
            return self._admitted[module, name]
        except KeyError:
            raise ForbiddenNameError(shown_start(f"{module}.{name}")) from None

    def persistent_load(self, pid: object) -> object:
        return super().persistent_load(pid) if self._outside is None else self._outside(pid)

    def _bytearray8(self) -> None:
        """As many bytes as there are, not as many as are claimed."""
        size = int.from_bytes(self.read(8), "little")
        self.stack.append(bytearray(self.read(size)))

    def _extension(self) -> None:
        """Numbers in place of names: a registry of this process, of which a file has no say."""
        raise ForbiddenNameError("a number of copyreg's registry")

    def _build(self) -> None:
        """A state is set on an object; a class or a function is not one, it belongs to the program."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, type) or callable(target):
            raise pickle.UnpicklingError(f"a state for {type(target).__name__} {shown_start(str(target))}")
        if (set_state := getattr(target, "__setstate__", None)) is not None:
            set_state(state)
        elif isinstance(state, dict):
            vars(target).update(state)
        else:
            raise pickle.UnpicklingError(f"a state that is {type(state).__name__}, expected a dictionary")

    def _dictionary(self) -> None:
        entries = self._entries(self.pop_mark())  # that brings the stack below the mark back
        self.stack.append(dict(entries))

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._put([key, value])

    def _set_items(self) -> None:
        self._put(self.pop_mark())

    def _put(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise pickle.UnpicklingError(f"an entry for {type(target).__name__}, expected a dictionary")
        target.update(self._entries(items))

    def _add_items(self) -> None:
        items, target = self.pop_mark(), self.stack[-1]
        if not isinstance(target, set):
            raise pickle.UnpicklingError(f"an entry for {type(target).__name__}, expected a set")
        target.update(map(self._key, items))

    def _frozen_set(self) -> None:
        members = self.pop_mark()
        self.stack.append(frozenset(map(self._key, members)))

    def _entries(self, items: list[Any]) -> list[tuple[Any, Any]]:
        return [(self._key(key), value) for key, value in zip(items[::2], items[1::2], strict=True)]

    @staticmethod
    def _key(key: object) -> object:
        """A key whose hash takes no time: tuples that hold one another sixty deep have 2^60 members to hash."""
        members = key if isinstance(key, tuple) else (key,)
        if len(members) > _KEY_MEMBERS or any(map(_slow_to_hash, members)):
            raise pickle.UnpicklingError("a nested or long key, expected text, a number or a short tuple of them")
        return key


def _slow_to_hash(member: object) -> bool:
    return isinstance(member, tuple | frozenset) or (isinstance(member, int) and member.bit_length() > _KEY_BITS)


_INSTRUCTIONS: dict[int, Callable[..., None]] = pickle._Unpickler.dispatch | {
    pickle.BYTEARRAY8[0]: _Unpickler._bytearray8,
    pickle.EXT1[0]: _Unpickler._extension,
    pickle.EXT2[0]: _Unpickler._extension,
    pickle.EXT4[0]: _Unpickler._extension,
    pickle.BUILD[0]: _Unpickler._build,
    pickle.DICT[0]: _Unpickler._dictionary,
    pickle.SETITEM[0]: _Unpickler._set_item,
    pickle.SETITEMS[0]: _Unpickler._set_items,
    pickle.ADDITEMS[0]: _Unpickler._add_items,
    pickle.FROZENSET[0]: _Unpickler._frozen_set,
}
