"""What each sample counts in losses that need labels: the sets of a mixture weighed against each other."""

import numpy as np
from numpy.typing import NDArray

from dist_train.data.config import DataConfig


def sample_weights(data: DataConfig, sources: NDArray[np.int64]) -> NDArray[np.float64] | None:
    """Weights [G] of a global micro-batch, whose sum with the samples' losses is the loss; None: their mean.

    With `loss_weight`, a sample of set s weighs loss_weight of s / number of samples of s in the micro-batch: the loss
    is the sum over sets of loss_weight times the mean over the set's samples, and a set without a sample there
    contributes nothing. Without it, all samples of labelled sets weigh the same. Those of unlabelled sets weigh 0.

    Args:
        data: the `data` section.
        sources: [G] the set that each sample was read from.
    """
    labelled = np.array(data.labelled())
    if data.loss_weight is None:
        if labelled.all():
            return None
        counted: NDArray[np.float64] = labelled[sources].astype(np.float64)
        return counted / max(1.0, float(counted.sum()))
    weights = np.array([data.loss_weight, *(each.loss_weight or 0.0 for each in data.mix)])
    each = weights / np.maximum(1, np.bincount(sources, minlength=len(weights)))
    found: NDArray[np.float64] = each[sources]
    return found


def is_weighted(data: DataConfig) -> bool:
    """Whether samples have weights of their own, so that it matters which set each is from."""
    return data.loss_weight is not None or not all(data.labelled())
