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
    """The statistics of all samples, equal on all ranks. Two collectives, whose size does not grow with ranks.

    Each rank's sums of exponentials are relative to a logit of its own, so the largest of these is agreed on first.
    """
    return _several_labels(passed, ranks) if passed.apart else _one_label(passed, ranks)


def _one_label(passed: Forward, ranks: HeadGroup) -> Statistics:
    targets, samples = passed.targets, passed.targets.places.samples
    top = ranks.all_reduce_max(passed.max_logit.clone())
    sums = passed.queries.new_zeros((3, len(passed.queries)))
    torch.mul(passed.exp_sum, (passed.max_logit - top).exp_(), out=sums[0])
    sums[1, samples] = targets.logits
    sums[2, samples] = targets.centers.cosines
    total, logits, cosines = ranks.all_reduce(sums)
    log_sum = top + total.log()
    return Statistics(log_sum - logits, log_sum, cosines)


def _several_labels(passed: Forward, ranks: HeadGroup) -> Statistics:
    targets, samples = passed.targets, passed.targets.places.samples
    own = torch.stack([passed.max_logit, torch.zeros_like(passed.max_logit)])  # of negatives, of positives
    own[1].scatter_reduce_(0, samples, -targets.logits, "amax")  # with 0, for the 1 in the logarithm
    tops = ranks.all_reduce_max(own.clone())
    sums = passed.queries.new_zeros((4, len(passed.queries)))
    torch.mul(passed.exp_sum, (own[0] - tops[0]).exp_(), out=sums[0])
    sums[1].index_add_(0, samples, (-targets.logits - tops[1, samples]).exp_())
    sums[2].index_add_(0, samples, targets.centers.cosines)
    sums[3].index_add_(0, samples, torch.ones_like(targets.logits))
    ranks.all_reduce(sums)
    negatives, positives = tops + ((-tops).exp_() + sums[:2]).log_()  # log(1 + sum), relative to the top
    return Statistics(negatives + positives, negatives, sums[2] / sums[3].clamp_min(1), positives)
