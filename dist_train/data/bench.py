"""How many pictures a second a set gives, by backend and number of workers: `headcount data bench`."""

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dist_train.data.assemble import BatchPlan, build_order, open_reader
from dist_train.data.config import AugmentConfig, DataConfig
from dist_train.data.exchange import positions_of
from dist_train.data.loader import build_loader
from dist_train.data.opencv import decode
from dist_train.data.shards import BadSampleError
from dist_train.data.sources import open_sources
from dist_train.errors import UserError

USUAL = AugmentConfig(flip=0.5, rotation=10, brightness=0.2, contrast=0.2, saturation=0.2)
"""The usual changes to face crops: mirror, turn, colours."""


class Speed(NamedTuple):
    """What one way of reading gave.

    Attributes:
        what: "decode only", or a backend.
        workers: processes besides this one; 0: this one alone.
        images_per_s: the best of several stretches, since other programs can only slow it down.
    """

    what: str
    workers: int
    images_per_s: float


def measure(
    config: DataConfig, batch_size: int, seconds: float, workers: list[int], backends: list[str]
) -> Iterator[Speed]:
    """Read the set of `config` in training order: first reading and decoding alone, then each backend.

    Args:
        config: the `data` section; its backend and workers are replaced.
        batch_size: pictures a batch.
        seconds: time for each way.
        workers: numbers of processes to try.
        backends: `opencv`, `dali`; DALI has threads instead of workers and is tried once.

    Raises:
        UserError: no set there, one smaller than a batch, or a backend that is not installed.
    """
    yield Speed("decode only", 0, decode_only(config, batch_size, seconds))
    for backend in backends:
        for count in workers if backend == "opencv" else [0]:
            tried = config.model_copy(update={"backend": backend, "workers": count})
            with build_loader(tried, batch_size, 0, 1, seed=0) as loader:
                next(loader)  # workers have started
                yield Speed(backend, count, _best(lambda: len(next(loader).labels), seconds))


def decode_only(config: DataConfig, batch_size: int, seconds: float) -> float:
    """Pictures a second that one core reads and decodes, in training order and without any change.

    All of these pictures were read once before, in `seconds` at most, so that this figure and those that are compared
    with it come out of the page cache alike.
    """
    sources = open_sources(config)
    plan = BatchPlan(sources.sets, config, 0, batch_size, config.image_size or sources.manifest.image_size)
    if sources.manifest.samples < batch_size:
        raise UserError(f"the set has {sources.manifest.samples} samples, fewer than --batch-size {batch_size}")
    order, reader = build_order(plan), open_reader(plan)
    position = 0

    def batch(use: Callable[[NDArray[np.uint8]], object]) -> int:
        nonlocal position
        places = order.locate(positions_of(position, 0, batch_size))
        position += batch_size
        for shard, sample in zip(places.shard.tolist(), places.sample.tolist(), strict=True):
            with suppress(BadSampleError):
                use(reader.read(shard, sample).image)
        return batch_size

    try:
        begin = time.perf_counter()
        batch(decode)
        while position < sources.manifest.samples and time.perf_counter() - begin < seconds:
            batch(len)
        read = position

        def decoded() -> int:
            nonlocal position
            position %= read
            return batch(decode)

        return _best(decoded, seconds)
    finally:
        reader.close()


def _best(batch: Callable[[], int], seconds: float) -> float:
    """Largest rate of `batch`, which returns its pictures, over five stretches after one that empties queues."""
    rates = []
    for _ in range(6):
        begin, images, passed = time.perf_counter(), 0, 0.0
        while passed < seconds / 6:
            images += batch()
            passed = time.perf_counter() - begin
        rates.append(images / passed)
    return max(rates[1:])
