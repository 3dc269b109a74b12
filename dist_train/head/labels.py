"""The labels of a batch: one for each sample, or several."""

import numpy as np
from torch import Tensor

from dist_train.data.batch import Batch
from dist_train.errors import UserError
from dist_train.head.config import HeadConfig
from dist_train.head.sampling import Indices


def labels_of(batch: Batch | Tensor, config: HeadConfig) -> Tensor:
    """Labels [B], or [B, L] where samples have up to L > 1; of a batch those on the host.

    Raises:
        UserError: several labels, which the margin of `config` does not take.
    """
    labels = batch if isinstance(batch, Tensor) else batch.host_labels if batch.several is None else batch.several
    if labels.ndim == 2 and labels.shape[1] == 1:
        return labels[:, 0]
    if labels.ndim == 2:
        try:
            config.check_several_labels()
        except ValueError as error:
            raise UserError(str(error)) from error
    return labels


def check_labels(labels: Indices, num_classes: int, world_size: int, weights: Tensor | None = None) -> None:
    """Raise UserError unless all ranks' labels lie in [0, num_classes), or are -1 where `weights` [G] are 0.

    Args:
        labels: [G]; or [G, L] distinct ones of each sample, with -1 behind them where there are fewer than L.
        num_classes: C.
        world_size: W.
        weights: of the samples.
    """
    first = labels if labels.ndim == 1 else labels[:, 0]
    outside = (first < 0) | (first >= num_classes)
    if weights is not None:
        if weights.shape != first.shape:
            raise UserError(f"sample weights {list(weights.shape)}, expected [{len(labels)}], those of all ranks")
        outside &= (first != -1) | (weights.cpu().numpy() != 0)
    if labels.ndim == 2:
        ordered = np.sort(labels, axis=1)
        outside |= ((labels < -1) | (labels >= num_classes)).any(axis=1)
        outside |= ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(axis=1)
    wrong = np.flatnonzero(outside)
    if len(wrong):
        rank, place = divmod(int(wrong[0]), len(labels) // world_size)
        found = f"label {first[wrong[0]]}" if labels.ndim == 1 else f"labels {labels[wrong[0]].tolist()}"
        distinct = "" if labels.ndim == 1 else ", each at most once for a sample"
        raise UserError(
            f"rank {rank}: {found} at place {place} of the batch, but the head has "
            f"{num_classes} classes, labels 0 to {num_classes - 1}{distinct}"
        )
