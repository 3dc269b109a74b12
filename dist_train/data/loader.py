"""Batches for training: an endless, exactly resumable stream, each rank taking its part of every global batch."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from dist_train.data.assemble import Plan, build_order
from dist_train.data.bad_samples import BadSampleLog
from dist_train.data.batch import Batch, Transfer
from dist_train.data.config import DataConfig
from dist_train.data.manifest import Manifest, load_manifest
from dist_train.data.pool import LocalProducer, Producer, WorkerPool
from dist_train.data.reader import ImageSet
from dist_train.data.sequential import SetBatch, iterate_set

__all__ = ["Batch", "Loader", "SetBatch", "build_loader", "iterate_set"]


class Loader:
    """Iterates over a rank's batches for ever; see `build_loader`.

    Attributes:
        manifest: of the data that are read.
        image_size: side of the pictures in pixels.
        steps_per_epoch: global batches in an epoch, the same on every rank.
    """

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        producer: Producer,
        transfer: Transfer,
        bad_samples: BadSampleLog,
        batch_size: int,
        rank: int,
        start: int,
    ) -> None:
        self.manifest = manifest
        self.image_size = plan.image_size
        self.steps_per_epoch = build_order(plan).epoch_length // plan.global_batch
        self._plan = plan
        self._producer = producer
        self._transfer = transfer
        self._bad_samples = bad_samples
        self._position = start
        self._offset = rank * batch_size
        self._waited_s = 0.0
        for step in range(plan.config.prefetch):
            producer.submit(start + step * plan.global_batch + self._offset)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        begin = time.perf_counter()
        finished = self._producer.collect()
        self._bad_samples.add(len(finished.labels), finished.bad)
        batch = self._transfer(finished.images, finished.labels, finished.positions)
        ahead = self._plan.config.prefetch * self._plan.global_batch
        self._producer.submit(self._position + ahead + self._offset)
        self._position += self._plan.global_batch
        self._waited_s += time.perf_counter() - begin
        return batch

    @property
    def bad_samples(self) -> int:
        """Bad samples that this rank has replaced so far."""
        return self._bad_samples.count

    def take_wait(self) -> float:
        """Seconds spent in waiting for data since this was last asked."""
        waited, self._waited_s = self._waited_s, 0.0
        return waited

    def state_dict(self) -> dict[str, int]:
        """Positions consumed over all ranks, and the seed: with the same configuration, all that a resume needs."""
        return {"position": self._position, "seed": self._plan.seed}

    def close(self) -> None:
        """Give back files and processes; safe to repeat."""
        self._producer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


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

    Step t takes positions [t·G, (t+1)·G) with G = batch_size · world_size; rank r takes the r-th part of them. What
    stands at a position depends on the sets, `seed`, G (which sets the length of an epoch) and the sampling options,
    not on ranks, workers or backend.

    Args:
        config: the `data` section.
        batch_size: samples per rank and step.
        rank: this process's number.
        world_size: number of ranks.
        seed: of order and augmentation.
        start_position: positions already consumed.
        device: where batches are wanted; default: CPU.
        bad_samples_path: file that bad samples are appended to, one JSON object a line.

    Raises:
        UserError: no set there, or one that is smaller than a global batch.
    """
    manifest = load_manifest(config.path)
    sets = (ImageSet(config.path, manifest),)
    plan = Plan(sets, config, seed, batch_size * world_size, config.image_size or manifest.image_size)
    build_order(plan)  # what is wrong with it is said before any process starts
    workers = _share_of_cores() if config.workers is None else config.workers
    producer: Producer
    if workers:
        producer = WorkerPool(plan, batch_size, workers, config.prefetch, config.timeout_s)
    else:
        producer = LocalProducer(plan, batch_size)
    bad_samples = BadSampleLog(bad_samples_path, config.max_bad_fraction, -(-manifest.samples // world_size))
    transfer = Transfer(device or torch.device("cpu"))
    return Loader(plan, manifest, producer, transfer, bad_samples, batch_size, rank, start_position)


def _share_of_cores() -> int:
    """This rank's share of the cores it may use, less one for training."""
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, len(os.sched_getaffinity(0)) // ranks_here - 1)
