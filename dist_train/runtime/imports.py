"""Imports without Python's collector of cycles, which is two fifths of the time that those of training take.

Loading torch makes a million objects that live as long as the process. The collector looks through all of them again
and again meanwhile, and from time to time afterwards.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Meanwhile nothing is collected; what is there at the end, modules above all, is never looked through again."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
