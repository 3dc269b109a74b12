"""Real pictures to calibrate an export with and to compare its forms on."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torch import Tensor

from dist_train.errors import UserError
from dist_train.evaluate.bin import VerificationSet
from dist_train.evaluate.pictures import decoding, to_tensor
from dist_train.evaluate.sets import StoredSet
from dist_train.export.convention import Convention


def stored_pictures(directory: Path, image_size: int, wanted: int, *, late: bool = False) -> Tensor:
    """Pictures spread evenly over a set of shards, all of them where it has fewer.

    Args:
        directory: of the set.
        image_size: side S in pixels; another size is scaled.
        wanted: how many.
        late: take others than a call without it does, as far as there are others.

    Returns:
        float32 [N, 3, S, S] in [-1, 1].

    Raises:
        UserError: no such set, or an empty one.
        WorkError: a damaged picture.
    """
    with StoredSet(directory, labelled=False) as stored:
        numbers = spread(len(stored), wanted, late=late)
        if not len(numbers):
            raise UserError(f"set {directory}: no pictures in it")
        load = decoding(stored.read, image_size, f"set {directory}")
        pictures = [load(int(number)) for number in numbers]
    return to_tensor(pictures)


def verification_pictures(dataset: VerificationSet, image_size: int, wanted: int) -> Tensor:
    """Pictures spread evenly over a verification set: float32 [N, 3, S, S] in [-1, 1].

    Raises:
        WorkError: a damaged picture.
    """
    load = decoding(dataset.images.__getitem__, image_size, f"verification set {dataset.name}")
    return to_tensor([load(int(number)) for number in spread(len(dataset.images), wanted)])


def spread(count: int, wanted: int, *, late: bool = False) -> np.ndarray:
    """At most `wanted` of the numbers 0 .. count - 1 at even distances, from the first on or, `late`, between those."""
    taken = min(count, wanted)
    return ((np.arange(taken) + (0.5 if late else 0.0)) * count / max(taken, 1)).astype(np.int64)


def batches(images: Tensor, convention: Convention, size: int = 16) -> Iterator[np.ndarray]:
    """Images as arrays that a model takes, `size` at a time."""
    for part in images.split(size):
        yield np.ascontiguousarray(convention.as_taken(part).numpy())
