"""Exported class centers: a safetensors file of numbers, and a table of names beside it."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dist_train.errors import UserError, WorkError
from dist_train.run_files import IDENTITIES_NAME
from dist_train.runtime.text import first_line

CENTERS_SUFFIX = ".centers.safetensors"
_KEY = "centers"
_WINDOW_BYTES = 16 << 20


def centers_beside(path: Path) -> tuple[Path, Path]:
    """The files of centers and of names that belong to `path`: the file of centers itself, or one of weights.

    Raises:
        UserError: they are not there.
    """
    stem = path.name.removesuffix(CENTERS_SUFFIX)
    if stem == path.name:
        stem = path.stem
    centers, names = path.with_name(stem + CENTERS_SUFFIX), path.with_name(f"{stem}.{IDENTITIES_NAME}")
    for each in (centers, names):
        if not each.is_file():
            raise UserError(
                f"start.head: {path}: {each.name} is not beside it; write it with `headcount checkpoint export "
                "--centers`, give a run directory, or start.backbone alone in place of start.from"
            )
    return centers, names


class ExportedCenters:
    """Centers float32 [C, D], or [C, K, D] for K > 1, read by class.

    Args:
        path: of the safetensors file.

    Attributes:
        shape: (C, K·D).
        centers_per_class: K.
        embedding_dim: D.

    Raises:
        UserError: not such a file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with safe_open(path, framework="pt") as file:
                if _KEY not in file.keys():  # noqa: SIM118 - it is no dictionary
                    raise UserError(f"start.head: {path}: no tensor {_KEY} in it; expected exported centers")
                entry = file.get_slice(_KEY)
                sizes, kind = entry.get_shape(), entry.get_dtype()
        except (SafetensorError, OSError) as error:
            raise UserError(f"start.head: {path}: no file of centers: {first_line(error)}; export it again") from error
        if len(sizes) not in (2, 3) or 0 in sizes or kind != "F32":
            raise UserError(f"start.head: {path}: {_KEY} is {kind} {sizes}, expected F32 [C, D] or [C, K, D]")
        self.centers_per_class = sizes[1] if len(sizes) == 3 else 1
        self.embedding_dim = sizes[-1]
        self.shape: tuple[int, int] = (sizes[0], self.centers_per_class * self.embedding_dim)

    def take(self, rows: NDArray[np.int64]) -> Tensor:
        """Rows [n], sorted -> float32 [n, K·D]; a window of the file at a time is in memory.

        Raises:
            WorkError: the file cannot be read any more.
        """
        found = torch.empty(len(rows), self.shape[1])
        window = rows // max(1, _WINDOW_BYTES // (4 * self.shape[1]))
        cuts = [0, *(np.flatnonzero(np.diff(window)) + 1).tolist(), len(rows)]
        try:
            with safe_open(self._path, framework="pt") as file:  # its pages go when it is closed
                entry = file.get_slice(_KEY)
                for low, high in pairwise(cuts):
                    if low < high:
                        first, last = int(rows[low]), int(rows[high - 1])
                        part = entry[first : last + 1].view(-1, self.shape[1])
                        found[low:high] = part[torch.from_numpy(rows[low:high] - first)]
        except (SafetensorError, OSError) as error:
            raise WorkError(f"{self._path}: cannot be read: {first_line(error)}") from error
        return found
