"""Progress bars on standard error that outlive whoever reads it: a closed terminal or a full disk ends no work."""

import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from tqdm import tqdm


class _Stderr:
    """Standard error as it is at each moment; what cannot be written is dropped."""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - all else is the stream's
        return getattr(sys.stderr, name)

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError):  # ValueError: it is closed
            sys.stderr.write(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.flush()


def progress_bar(iterable: Iterable[Any] | None = None, **options: Any) -> "tqdm[Any]":  # noqa: ANN401 - tqdm's own
    """A bar of tqdm with its `options`."""
    return tqdm(iterable, file=_Stderr(), **options)
