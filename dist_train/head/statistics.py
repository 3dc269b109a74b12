"""What ranks know together of each sample's softmax: its loss, and what logits weigh in it.

Samples with one label have the softmax's loss. Samples with several have that of An et al. 2024, "Multi-label Cluster
Discrimination for Visual Representation Learning", section 3.3, in which positives i and negatives j stand apart:

    log(1 + sum_i exp(-s_i)) + log(1 + sum_j exp(s_j))
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dist_train.head.exchange import HeadGroup
from dist_train.head.records import Forward
from dist_train.head.targets import Targets


@dataclass(frozen=True, slots=True)
class Statistics:
    """The samples' losses over all ranks' classes.

    Attributes:
        losses: [G].
        log_sum: [G] what the logits of negatives are relative to: exp(s_j - log_sum) is the loss's slope in s_j.
        cosines: [G] target cosines, the mean where a sample has several.
        log_positives: [G] what those of targets are relative to where a sample has several, exp(-s_i - log_positives)
            being the slope's size; None: one label each, and they are relative to `log_sum`.
    """

    losses: Tensor
    log_sum: Tensor
    cosines: Tensor
    log_positives: Tensor | None = None

    def target_slopes(self, targets: Targets) -> Tensor:
        """Slope of the loss in the logits of this rank's targets [T]."""
        samples = targets.places.samples
        if self.log_positives is None:
            return (targets.logits - self.log_sum[samples]).exp() - 1
        return -(-targets.logits - self.log_positives[samples]).exp()


def exchange_statistics(passed: Forward, ranks: HeadGroup) -> Statistics:
    """The statistics of all samples. One collective."""
    return _several_labels(passed, ranks) if passed.apart else _one_label(passed, ranks)


def _one_label(passed: Forward, ranks: HeadGroup) -> Statistics:
    targets, samples = passed.targets, passed.targets.places.samples
    statistics = passed.queries.new_zeros((4, len(passed.queries)))
    statistics[0], statistics[1] = passed.max_logit, passed.exp_sum
    statistics[2, samples] = targets.logits
    statistics[3, samples] = targets.centers.cosines
    every = ranks.gather(statistics.unsqueeze(0))  # [W, 4, G]
    top = every[:, 0].amax(dim=0)
    log_sum = top + (every[:, 1] * (every[:, 0] - top).exp()).sum(dim=0).log()
    return Statistics(log_sum - every[:, 2].sum(dim=0), log_sum, every[:, 3].sum(dim=0))


def _several_labels(passed: Forward, ranks: HeadGroup) -> Statistics:
    targets, samples = passed.targets, passed.targets.places.samples
    statistics = passed.queries.new_zeros((6, len(passed.queries)))
    statistics[0], statistics[1] = passed.max_logit, passed.exp_sum
    statistics[2].scatter_reduce_(0, samples, -targets.logits, "amax")  # with 0, for the 1 in the logarithm
    statistics[3].index_add_(0, samples, (-targets.logits - statistics[2, samples]).exp())
    statistics[4].index_add_(0, samples, targets.centers.cosines)
    statistics[5].index_add_(0, samples, torch.ones_like(targets.logits))
    every = ranks.gather(statistics.unsqueeze(0))  # [W, 6, G]
    negatives, positives = _log_one_plus(every[:, 0], every[:, 1]), _log_one_plus(every[:, 2], every[:, 3])
    cosines = every[:, 4].sum(dim=0) / every[:, 5].sum(dim=0).clamp_min(1)
    return Statistics(negatives + positives, negatives, cosines, positives)


def _log_one_plus(tops: Tensor, sums: Tensor) -> Tensor:
    """log(1 + sum over ranks of sums · exp(tops)) [G], from [W, G] each; tops are at least 0."""
    top = tops.amax(dim=0)
    return top + ((-top).exp() + (sums * (tops - top).exp()).sum(dim=0)).log()
