"""Blocks of a search that are kept on disk, so that a stopped job goes on with the first block that is not there.

    HOME/DIGEST/000007.npz    block 7 of the search that DIGEST stands for: pairs int64 [E], cosines float32 [E]

Every file appears by rename. One that is damaged, or has what the search cannot have found, is made again.
"""

import hashlib
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dist_train.data.counters import Ints
from dist_train.runtime.written import written_output

Edges = tuple[Ints, NDArray[np.float32]]

_ROWS = 1 << 14  # whose bytes are digested at a time


class KeptBlocks:
    """The finished blocks of a search.

    Args:
        home: directory of a job's own files.
        features: rows that are searched [N, D].
        about: all else that decides what is found.
        most: pairs that a block can have.
    """

    def __init__(self, home: Path, features: Tensor, about: str, most: int) -> None:
        hashed = hashlib.sha256(f"{about} {list(features.shape)}".encode())
        for part in features.split(_ROWS):
            hashed.update(np.ascontiguousarray(part.cpu().numpy()).tobytes())
        self._folder, self._count, self._most = home / hashed.hexdigest(), len(features), most

    def begin(self) -> None:
        """Make room, and remove what other searches have kept. One process does it, before others look."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for other in self._folder.parent.iterdir():
            if other.is_dir() and other != self._folder:
                shutil.rmtree(other, ignore_errors=True)

    def block(self, number: int, find: Callable[[], Edges]) -> Edges:
        """A block as it was kept, or as `find` finds it.

        Raises:
            WorkError: the disk is full.
        """
        path = self._folder / f"{number:06d}.npz"
        kept = self._read(path)
        if kept is None:
            kept = find()
            with written_output(path) as file:
                np.savez(file, pairs=kept[0], cosines=kept[1])
        return kept

    def _read(self, path: Path) -> Edges | None:
        try:
            if path.stat().st_size > self._most * 12 + 4096:
                return None
            with np.load(path, allow_pickle=False) as file:
                pairs, cosines = file["pairs"], file["cosines"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        fits = pairs.dtype == np.int64 and cosines.dtype == np.float32 and pairs.ndim == 1
        fits = fits and pairs.shape == cosines.shape and len(pairs) <= self._most
        inside = fits and bool(((pairs >= 0) & (pairs < self._count**2)).all() and np.isfinite(cosines).all())
        return (pairs, cosines) if inside else None
