"""The table of what crops should be answered with, by their labels."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_prep.mtcnn.training.crops import PHOTOS, WIDTH
from data_prep.mtcnn.training.losses import KINDS, Targets
from dist_train.data.manifest import load_manifest
from dist_train.errors import WorkError
from dist_train.runtime.files import map_array


class TargetTable:
    """The tables of a network's sets, one behind the other as their labels are.

    Args:
        directory: of the sets; see `data_prep.mtcnn.training.crops`.
        crops: of each kind, most of a photo.

    Raises:
        WorkError: a table is missing, or is not one.
    """

    def __init__(self, directory: Path, crops: list[int]) -> None:
        paths: list[tuple[Path, int]] = []
        firsts, capacities = [], []  # of each kind: its first part among those of all kinds, and labels of a part
        for kind, most in zip(KINDS, crops, strict=True):
            parts = load_manifest(directory / kind).num_classes // (PHOTOS * most)
            firsts.append(len(paths))
            capacities.append(PHOTOS * most)
            paths += [(directory / kind / f"part-{number:05d}.npy", PHOTOS * most) for number in range(parts)]
        starts = np.cumsum([0, *(len(_mapped(path, most)) for path, most in paths)])
        rows = np.empty((starts[-1], WIDTH), np.float32)  # all at once: joined of parts, it would take twice the memory
        for (path, most), start, end in zip(paths, starts[:-1], starts[1:], strict=True):
            rows[start:end] = _mapped(path, most)
        self._rows, self._starts = torch.from_numpy(rows), torch.from_numpy(starts[:-1])
        self._firsts, self._capacities = torch.tensor(firsts), torch.tensor(capacities)
        sizes = [load_manifest(directory / kind).num_classes for kind in KINDS]
        self._labels_before = torch.tensor([0, *sizes[:-1]]).cumsum(0)

    def of(self, labels: Tensor, kind: Tensor, mirror: Tensor) -> Targets:
        """What samples should be answered with.

        Args:
            labels: int64 [B], as the loader numbers those of several sets.
            kind: int64 [B], the set of each.
            mirror: bool [B], which are shown as their mirror image.
        """
        own = labels - self._labels_before[kind]
        part = own.div(self._capacities[kind], rounding_mode="floor")
        row = own - part * self._capacities[kind]
        found = self._rows[self._starts[self._firsts[kind] + part] + row]  # [B, WIDTH]
        boxes = torch.where(mirror[:, None], found[:, 4:8], found[:, :4])
        return Targets(kind, boxes, torch.where(mirror[:, None], found[:, 18:], found[:, 8:18]))


def _mapped(path: Path, most: int) -> NDArray[np.float32]:
    try:
        table = map_array(path, "r")
    except (OSError, ValueError) as error:
        raise WorkError(f"{path}: cannot be read: {error}; remove the crops, and they are made again") from error
    if table.dtype != np.float32 or table.ndim != 2 or table.shape[1] != WIDTH or len(table) > most:
        raise WorkError(f"{path}: {table.dtype} {list(table.shape)}, expected float32 [n <= {most}, {WIDTH}]")
    return table
