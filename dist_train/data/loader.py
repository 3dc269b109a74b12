"""Batches for training: an endless, exactly resumable stream, each rank taking its part of every global batch."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from dist_train.data.assemble import Assembler, Plan, build_order
from dist_train.data.config import DataConfig
from dist_train.data.manifest import Manifest, load_manifest
from dist_train.data.reader import ImageSet

log = logging.getLogger(__name__)


class Batch(NamedTuple):
    """One rank's part of a global batch.

    Attributes:
        images: float32 [B, 3, S, S] in -1 .. 1, red first, on the device.
        labels: int64 [B], on the device.
        positions: int64 [B], their places in the sample order, on the CPU.
    """

    images: Tensor
    labels: Tensor
    positions: Tensor


class Loader:
    """Iterates over batches for ever; see `build_loader`."""

    def __init__(
        self, plan: Plan, manifest: Manifest, batch_size: int, rank: int, start: int, device: torch.device
    ) -> None:
        self._plan = plan
        self._batch_size = batch_size
        self._rank = rank
        self._position = start
        self._device = device
        self._waited_s = 0.0
        self.manifest = manifest
        self.image_size = plan.image_size
        self.steps_per_epoch = build_order(plan).epoch_length // plan.global_batch
        self._assembler = Assembler(plan)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        begin = time.perf_counter()
        size = self._batch_size
        first = self._position + self._rank * size
        positions = np.arange(first, first + size, dtype=np.int64)
        images = np.empty((size, 3, self.image_size, self.image_size), dtype=np.uint8)
        labels = np.empty(size, dtype=np.int64)
        for bad in self._assembler.fill(positions, images, labels):
            log.warning("bad sample %s in %s: %s", bad.key, bad.shard, bad.reason)
        self._position += self._plan.global_batch
        self._waited_s += time.perf_counter() - begin
        return Batch(
            normalise(torch.from_numpy(images).to(self._device)),
            torch.from_numpy(labels).to(self._device),
            torch.from_numpy(positions),
        )

    def take_wait(self) -> float:
        """Seconds spent waiting for data since this was last asked."""
        waited, self._waited_s = self._waited_s, 0.0
        return waited

    def state_dict(self) -> dict[str, int]:
        """Positions consumed over all ranks, and the seed: with the same configuration, all that a resume needs."""
        return {"position": self._position, "seed": self._plan.seed}

    def close(self) -> None:
        """Give back files and processes; safe to repeat."""
        self._assembler.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def normalise(images: Tensor) -> Tensor:
    """Grey levels 0 .. 255 to float32 -1 .. 1 (mean 0.5, standard deviation 0.5), where the tensor is."""
    return images.to(torch.float32).mul_(1 / 127.5).sub_(1)


def build_loader(
    config: DataConfig,
    batch_size: int,
    rank: int,
    world_size: int,
    seed: int,
    start_position: int = 0,
    device: torch.device | None = None,
    bad_samples_path: Path | None = None,
) -> Loader:
    """Open the sets of `config` and start at a position.

    Step t takes positions [t·G, (t+1)·G) with G = batch_size · world_size; rank r takes the r-th part of them.

    Args:
        config: the `data` section.
        batch_size: samples per rank and step.
        rank: this process's number.
        world_size: number of ranks.
        seed: of order and augmentation.
        start_position: positions already consumed; a multiple of G unless the number of ranks or the batch changed.
        device: where batches are wanted; default: CPU.
        bad_samples_path: file that bad samples are appended to, one JSON object a line.

    Raises:
        UserError: no set there, or one that is smaller than a global batch.
    """
    manifest = load_manifest(Path(config.path))
    plan = Plan(
        (ImageSet(config.path, manifest),),
        config,
        seed,
        batch_size * world_size,
        config.image_size or manifest.image_size,
    )
    return Loader(plan, manifest, batch_size, rank, start_position, device or torch.device("cpu"))
