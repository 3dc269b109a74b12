"""What the terms over pairs of a gathered batch have in common."""

import logging

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_train.data.batch import Batch
from dist_train.objectives.gathering import Gathered, Gathering
from dist_train.runtime.to_device import to_device

logger = logging.getLogger(__name__)


class PairTerm:
    """An `Objective` over the pairs of samples of a gathered micro-batch, computed on every rank alike.

    Samples without a label take part in none. Embeddings are compared as float32 unit vectors. Where no two samples
    have the same label there is nothing to learn from: the value is 0, which is said once.

    Args:
        name: in recipes, for messages.
        gathering: brings together the embeddings of all ranks.
        speaks: this rank writes warnings.
    """

    def __init__(self, name: str, gathering: Gathering, speaks: bool) -> None:
        self._name, self._gathering = name, gathering
        self._silent = not speaks
        self._figures: dict[str, Tensor | float] = {}

    def value(self, embeddings: Tensor, labels: Tensor, positives: NDArray[np.int64]) -> Tensor:
        """The term's value [], a mean over the labelled samples or pairs of all ranks; notes its figures.

        Args:
            embeddings: [n, D] float32 unit vectors.
            labels: [n] int64, not negative, of which at least two are equal.
            positives: [n] how many other samples have each sample's label.
        """
        raise NotImplementedError

    def prepare(self, batch: Batch) -> None:
        """See `Objective`."""
        self._gathering.prepare(batch)

    def __call__(self, embeddings: Tensor, batch: Batch, /) -> Tensor:
        """See `Objective`."""
        gathered = self._gathering(embeddings, batch)
        found, labels, host_labels = labelled(gathered)
        positives = positives_of(host_labels)
        with torch.autocast(found.device.type, enabled=False):
            if positives.any():
                value = self.value(unit(found), labels, positives)
            else:
                self._warn(len(host_labels))
                value = 0 * embeddings.sum()  # part of the graph all the same: the backbone waits for a gradient
        self._figures["loss"] = value.detach()
        return value

    def _warn(self, samples: int) -> None:
        if not self._silent:
            logger.warning(
                "objectives.%s: no two of the batch's %d labelled pictures show one identity, and the term is 0 "
                "there; set data.images_per_class, e.g. 4, or a larger train.micro_batch_size",
                self._name,
                samples,
            )
        self._silent = True

    def step(self, lr: float, *, measure: bool) -> None:
        """See `Objective`; a term without weights has nothing to update."""

    def zero_grad(self) -> None:
        """See `Objective`."""
        self._figures.clear()

    def statistics(self) -> dict[str, float]:
        """See `Objective`; of the last micro-batch: `loss` without its weight, and what the term has besides."""
        return {name: float(value) for name, value in self._figures.items()}

    def close(self) -> None:
        """See `Objective`."""


def labelled(gathered: Gathered) -> tuple[Tensor, Tensor, NDArray[np.int64]]:
    """Embeddings [n, D] and labels [n], on the device and on the host, of the samples that have a label."""
    known = np.flatnonzero(gathered.host_labels >= 0)
    if len(known) == len(gathered.host_labels):
        return gathered.embeddings, gathered.labels, gathered.host_labels
    places = to_device(torch.from_numpy(known), gathered.labels.device)
    return gathered.embeddings[places], gathered.labels[places], gathered.host_labels[known]


def unit(embeddings: Tensor) -> Tensor:
    """Each of the embeddings [n, D] at length 1; one of zeros stays as it is and has no gradient."""
    norms = embeddings.norm(dim=1, keepdim=True)
    return embeddings * torch.where(norms > 0, 1 / torch.where(norms > 0, norms, 1.0), 0.0)


def positives_of(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each of the labels [n], how many others are the same."""
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return np.asarray(counts[inverse] - 1, dtype=np.int64)
