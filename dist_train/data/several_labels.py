"""Samples with several labels: the list in a sample's `.json`, and the rows that batches have of them."""

import numpy as np

from dist_train.data.counters import Ints
from dist_train.data.shards import UNLABELLED, BadSampleError, RawSample

LABELS_KEY = "labels"


def further_labels(raw: RawSample, most: int) -> tuple[int, ...]:
    """The labels in a sample's `.json`, in their order, without the one that it has anyway; none without a list.

    Args:
        raw: with its record.
        most: labels that a sample may have.

    Raises:
        BadSampleError: no list of class numbers, or more labels than `most`.
    """
    found = (raw.record or {}).get(LABELS_KEY, [])
    if not isinstance(found, list) or not all(type(each) is int and each >= 0 for each in found):
        raise BadSampleError(f"its .json has {LABELS_KEY!r} = {str(found)[:40]}, expected a list of class numbers")
    further = tuple(each for each in dict.fromkeys(found) if each != raw.label)
    if len(further) >= most:
        raise BadSampleError(f"{1 + len(further)} labels, but data.labels_per_sample is {most}")
    return further


def empty_labels(samples: int, most: int) -> Ints:
    """An array for the labels of samples: [samples], or [samples, most] where they may have several."""
    return np.empty(samples if most == 1 else (samples, most), dtype=np.int64)


def put_labels(labels: Ints, row: int, raw: RawSample) -> None:
    """Write a sample's labels into a row of `labels`, as `empty_labels` makes it."""
    if labels.ndim == 1:
        labels[row] = raw.label
        return
    labels[row] = UNLABELLED
    labels[row, : 1 + len(raw.further)] = raw.label, *raw.further
