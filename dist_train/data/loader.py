"""Batches for training: an endless, exactly resumable stream, each rank taking its part of every global batch."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from dist_train.data.assemble import BatchPlan, build_order, open_reader
from dist_train.data.bad_samples import BadSampleLog
from dist_train.data.batch import Batch, Transfer
from dist_train.data.class_index import build_class_index
from dist_train.data.config import DataConfig
from dist_train.data.counters import Ints
from dist_train.data.order import Order, SamplePlaces
from dist_train.data.pool import LocalProducer, Producer, WorkerPool
from dist_train.data.remote import Prefetcher, cache_policy, is_remote
from dist_train.data.sources import Sources, open_sources
from dist_train.errors import UserError
from dist_train.runtime.membership import read_membership

log = logging.getLogger(__name__)

__all__ = ["Batch", "Loader", "build_loader"]


class Loader:
    """Iterates over a rank's batches for ever; see `build_loader`.

    Attributes:
        sources: the sets that are read.
        manifest: of all of them together.
        image_size: side of the pictures in pixels.
        steps_per_epoch: global batches in an epoch, the same on every rank.
    """

    def __init__(
        self,
        plan: BatchPlan,
        order: Order,
        sources: Sources,
        producer: Producer,
        transfer: Transfer,
        bad_samples: BadSampleLog,
        prefetcher: Prefetcher | None,
        batch_size: int,
        rank: int,
        start: int,
        device: torch.device,
    ) -> None:
        self.sources, self.manifest = sources, sources.manifest
        self.image_size = plan.image_size
        self.steps_per_epoch = order.epoch_length // plan.global_batch
        self._plan = plan
        self._producer = producer
        self._transfer = transfer
        self._bad_samples = bad_samples
        self._order = order
        self._prefetcher = prefetcher
        self._position = start
        self._offset = rank * batch_size
        self._batch_size, self._device = batch_size, device
        self._waited_s = 0.0
        self._look_ahead()
        self._submit_first()

    def _submit_first(self) -> None:
        """Ask for the batches that come next."""
        for step in range(self._plan.config.prefetch):
            self._producer.submit(self._position + step * self._plan.global_batch + self._offset)

    def change(self, config: DataConfig) -> None:
        """Give the batches that come next by another `augment` and `image_size`; their samples and order are the same.

        Batches that were prepared ahead are dropped, and made anew.

        Args:
            config: the `data` section, the same but for these keys.

        Raises:
            UserError | WorkError: what decodes cannot be started.
        """
        image_size = config.image_size or self.manifest.image_size
        if (config.augment, image_size) == (self._plan.config.augment, self._plan.image_size):
            return
        self._plan = self._plan._replace(config=config, image_size=image_size)
        self.image_size = image_size
        self._producer.close()
        self._producer = _make_producer(self._plan, self._batch_size, self._device)
        self._transfer = Transfer(self._device)  # without the arrays of the size before
        self._submit_first()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        begin = time.perf_counter()
        finished = self._producer.collect()
        self._bad_samples.add(len(finished.labels), finished.bad)
        batch = self._transfer(finished.images, finished.labels, finished.positions, finished.sources, finished.other)
        ahead = self._plan.config.prefetch * self._plan.global_batch
        self._producer.submit(self._position + ahead + self._offset)
        self._position += self._plan.global_batch
        self._look_ahead()
        self._waited_s += time.perf_counter() - begin
        return batch

    def _look_ahead(self) -> None:
        if self._prefetcher is not None:
            self._prefetcher.want(self._order.upcoming(self._position).tolist())

    def locate(self, positions: Ints) -> SamplePlaces:
        """Which sample of which shard the order has at `positions` [n]; a bad one was replaced by a later one."""
        return self._order.locate(positions)

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
        if self._prefetcher is not None:  # first: the producer may wait for what it downloads
            self._prefetcher.close()
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
    views: int = 1,
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
        views: 2 makes `Batch.other` too, of the same samples under other augmentation draws; 1 or 2.

    Raises:
        UserError: no set there, or one that is smaller than a global batch.
    """
    sources = open_sources(config)
    plan = BatchPlan(
        sources.sets,
        config,
        seed,
        batch_size * world_size,
        config.image_size or sources.manifest.image_size,
        _class_index(config, sources, batch_size),
        views,
    )
    order = build_order(plan)  # what is wrong with it is said before any process starts
    device = device or torch.device("cpu")
    per_rank = -(-sources.manifest.samples // world_size)
    bad_samples = BadSampleLog(bad_samples_path, config.max_bad_fraction, per_rank)
    with ExitStack() as opened:  # what a start that fails half-way has begun ends with it
        prefetcher = _prefetcher(plan, order)
        if prefetcher is not None:
            opened.callback(prefetcher.close)
        producer = _make_producer(plan, batch_size, device)
        opened.callback(producer.close)
        transfer = Transfer(device)
        loader = Loader(
            plan,
            order,
            sources,
            producer,
            transfer,
            bad_samples,
            prefetcher,
            batch_size,
            rank,
            start_position,
            device,
        )
        opened.pop_all()
    return loader


def _make_producer(plan: BatchPlan, batch_size: int, device: torch.device) -> Producer:
    config = plan.config
    # DALI's CPU operators are slower than OpenCV's, so it is worth its start only where there is a GPU.
    if config.backend == "dali" or (config.backend == "auto" and device.type == "cuda"):
        try:
            from dist_train.data.dali import DaliProducer
        except ImportError as error:
            if config.backend == "dali":
                raise UserError(f"data.backend=dali: {error}; install nvidia-dali-cuda130, or use opencv") from error
            log.warning("no DALI here (%s): OpenCV decodes", error)
        else:
            return DaliProducer(plan, batch_size, device, config.timeout_s)
    workers = _share_of_cores() if config.workers is None else config.workers
    if workers:
        return WorkerPool(plan, batch_size, workers, config.prefetch, config.timeout_s)
    return LocalProducer(plan, batch_size)


def _class_index(config: DataConfig, sources: Sources, batch_size: int) -> str:
    if config.images_per_class is None:
        return ""
    if batch_size % config.images_per_class:
        raise UserError(
            f"a rank's batch of {batch_size} is not a multiple of data.images_per_class={config.images_per_class}"
        )
    return str(build_class_index(sources.sets[0], config.label_key, cache_policy(config)))


def _prefetcher(plan: BatchPlan, order: Order) -> Prefetcher | None:
    remote = [each for each in plan.sets if is_remote(each.path)]
    if not remote:
        return None
    needed = 0
    for each in remote:
        sizes = sorted((shard.bytes for shard in each.manifest.shards), reverse=True)
        needed += sum(sizes if plan.config.images_per_class else sizes[: 2 * plan.config.window_shards])
    if needed > plan.config.cache_gb * 1e9:
        raise UserError(
            f"data.cache_gb={plan.config.cache_gb:g}: two windows of shards take {needed / 1e9:.3g} GB; give it more, "
            f"or lower data.window_shards={plan.config.window_shards}"
        )
    reader = open_reader(plan)
    return Prefetcher(reader.fetch, reader.stop)


def _share_of_cores() -> int:
    """This rank's share of the cores it may use, less one for training."""
    return max(1, len(os.sched_getaffinity(0)) // read_membership(os.environ).local_world_size - 1)
