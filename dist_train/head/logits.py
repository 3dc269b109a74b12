"""Logits of targets and negatives, from centers and queries, without autograd through the products."""

import torch
from torch import Tensor

from dist_train.head.arithmetic import Arithmetic
from dist_train.head.config import HeadConfig
from dist_train.head.margins.base import Lifts, Margin
from dist_train.head.storage import Lease
from dist_train.head.targets import TargetCenters, TargetPlaces, Targets


def inverse_norms(rows: Tensor, out: Tensor | None = None) -> Tensor:
    """1 / norm of each row [n, D] -> [n]; 0 for a zero row, so its cosines are 0 and it gets no update."""
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, out=out)
    return norms.reciprocal_().nan_to_num_(posinf=0.0)


class Logits:
    """What the margin makes of products of queries and centers.

    Args:
        config: the `head` section.
        margin: the loss.
        device: where products are formed.

    Attributes:
        arithmetic: of the products.
        margin: the loss.
        k: centers a class, K.
        threshold: negatives with a larger logit are ignored; None: none is.
    """

    def __init__(self, config: HeadConfig, margin: Margin, device: torch.device) -> None:
        self.arithmetic = Arithmetic(config.arithmetic, device)
        self.margin = margin
        self.k = config.centers_per_class
        cosine = config.interclass_threshold
        self.threshold = None if cosine is None else cosine * margin.scale

    def nearest_centers(self, lease: Lease, places: TargetPlaces, queries: Tensor) -> TargetCenters:
        """The targets' nearest centers and their cosines with queries [G, D]."""
        rows = lease.pick("centers", places.positions).view(-1, queries.shape[1])  # [T·K, D]
        inverse = inverse_norms(rows) if self.margin.normalised else torch.ones_like(rows[:, 0])
        by_class = rows.view(-1, self.k, queries.shape[1])
        products = (by_class @ queries[places.samples].unsqueeze(2)).squeeze(2) * inverse.view(-1, self.k)
        best, nearest = products.max(dim=1)  # [T, K] -> [T]
        picked = torch.arange(len(best), device=rows.device) * self.k + nearest
        inverse = inverse[picked]
        return TargetCenters(rows[picked] * inverse[:, None], inverse, nearest, best / self.margin.scale)

    def of_targets(self, places: TargetPlaces, centers: TargetCenters, norms: Tensor, classes: Tensor) -> Targets:
        """The targets with the margin applied, and its derivatives.

        Args:
            places: where the targets are.
            centers: their nearest centers.
            norms: [G] of the raw embeddings.
            classes: [T] counted from this rank's first.
        """
        with torch.enable_grad():
            cosines = centers.cosines.detach().requires_grad_()
            target_norms = norms[places.samples].requires_grad_()
            logits = self.margin.target_logits(cosines, target_norms, classes)
            slopes, norm_slopes = torch.autograd.grad(
                logits.sum(), [cosines, target_norms], allow_unused=True, materialize_grads=True
            )
        return Targets(places, centers, logits.detach(), slopes / self.margin.scale, norm_slopes)

    def of_negatives(
        self,
        rows: Tensor,
        inverse: Tensor | None,
        places: TargetPlaces,
        start: int,
        queries: Tensor,
        lifts: Lifts | None,
        out: Tensor,
    ) -> Tensor | None:
        """Logits of the negatives among chosen classes from `start` on into `out` [n·K, G]; -inf elsewhere.

        Args:
            rows: [n·K, D] the classes' centers.
            inverse: [n·K] inverse norms of the rows; None where the margin does not normalise.
            places: the targets, which are not negatives.
            start: first class, counted among the chosen.
            queries: [G, D].
            lifts: of the margin for this batch.
            out: receives the logits.

        Returns:
            [n·K, G] d logit / d inner product of query and unit center; None where 1 throughout.
        """
        samples = len(queries)
        self.arithmetic.matmul(rows, queries.T, out=out)
        if inverse is not None:
            out.mul_(inverse[:, None])
        by_class = out.view(-1, self.k, samples)
        if self.k > 1:
            best, nearest = by_class.max(dim=1, keepdim=True)
            by_class.fill_(-torch.inf).scatter_(1, nearest, best)
        if self.threshold is not None:
            out.masked_fill_(out > self.threshold, -torch.inf)
        here = places.between(start, start + len(by_class))
        if here.stop > here.start:
            by_class[places.positions[here] - start, :, places.samples[here]] = -torch.inf
        return None if lifts is None else lifts.apply(out)
