"""A whole set once, in its stored order and unchanged: what evaluation reads."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dist_train.data.augment import identity
from dist_train.data.batch import normalise
from dist_train.data.opencv import Augmenter, decode
from dist_train.data.reader import ImageSet, SampleReader
from dist_train.data.shards import BadSampleError
from dist_train.data.sources import open_manifest

log = logging.getLogger(__name__)


class SetBatch(NamedTuple):
    """Some samples of a set.

    Attributes:
        images: float32 [B, 3, S, S] in -1 .. 1, red first, on the device.
        labels: int64 [B], on the device.
        positions: int64 [B], their numbers in the set, on the CPU.
        records: the samples' parsed `.json`, or None where they have none.
    """

    images: Tensor
    labels: Tensor
    positions: Tensor
    records: list[dict[str, Any] | None]


def iterate_set(
    path: str | Path,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | None = None,
    image_size: int | None = None,
    label_key: str = "label",
) -> Iterator[SetBatch]:
    """All samples of the set at `path`, once, in order, without augmentation.

    Rank r of W gets the r-th of W parts that lie one after another; parts differ by at most one sample, and so may the
    number of batches. The last batch may be smaller. A bad sample is left out and logged: `positions` tells which came.

    Args:
        path: directory of the set.
        batch_size: most samples in a batch.
        rank: this process's number.
        world_size: number of ranks.
        device: where images and labels are wanted; default: CPU.
        image_size: side of the pictures in pixels; default: the manifest's.
        label_key: key of the label in samples that have no `.cls`.

    Raises:
        UserError: no set there.
    """
    manifest = open_manifest(str(path), label_key)
    size = image_size or manifest.image_size
    reader = SampleReader([ImageSet(str(path), manifest)], label_key, open_shards=2)
    augmenter = Augmenter(size)
    augmenter.load(identity(1, size))
    starts = np.cumsum([0] + [shard.samples for shard in manifest.shards])
    stop = manifest.samples * (rank + 1) // world_size
    try:
        for first in range(manifest.samples * rank // world_size, stop, batch_size):
            images = np.empty((batch_size, 3, size, size), dtype=np.uint8)
            labels: list[int] = []
            numbers: list[int] = []
            records: list[dict[str, Any] | None] = []
            for number in range(first, min(first + batch_size, stop)):
                shard = int(np.searchsorted(starts, number, side="right")) - 1
                try:
                    raw = reader.read(shard, number - int(starts[shard]), with_record=True)
                    augmenter.apply(decode(raw.image, raw.set_px), 0, images[len(labels)])
                except BadSampleError as error:
                    log.warning("sample %d, in %s, is left out: %s", number, reader.name(shard), error)
                    continue
                labels.append(raw.label)
                numbers.append(number)
                records.append(raw.record)
            if labels:
                pixels = torch.from_numpy(images[: len(labels)]).to(device or torch.device("cpu"))
                yield SetBatch(normalise(pixels), torch.tensor(labels, device=device), torch.tensor(numbers), records)
    finally:
        reader.close()
