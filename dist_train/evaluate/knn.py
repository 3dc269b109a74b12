"""Classification of each picture of a labelled set by its nearest neighbours: what embeddings tell without a head.

Wu, Xiong, Yu, Lin, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination" (CVPR 2018), section 3.4:
the k nearest vote for their labels with weights exp(cosine / 0.07). Here one set is both sides: a picture's neighbours
are sought among all other pictures of the set.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dist_train.errors import UserError
from dist_train.evaluate.batches import EmbedFn
from dist_train.evaluate.embeddings import embed_pictures, rank_slice
from dist_train.evaluate.pictures import decoding
from dist_train.evaluate.search import nearest
from dist_train.evaluate.sets import StoredSet
from dist_train.runtime.ranks import ALONE, Ranks

TEMPERATURE = 0.07


@dataclass(frozen=True)
class KnnResult:
    """What neighbours tell in a set.

    Attributes:
        name: of the set.
        accuracy: share of the pictures whose neighbours vote for their own label.
        neighbours: k.
        pictures: of the set, of which those count that are not alone of their label.
        identities: labels of the set.
    """

    name: str
    accuracy: float
    neighbours: int
    pictures: int
    identities: int

    def summary(self) -> dict[str, Any]:
        """The figures, ready for JSON."""
        return {
            "set": self.name,
            "pictures": self.pictures,
            "identities": self.identities,
            "neighbours": self.neighbours,
            "accuracy": self.accuracy,
        }


def vote(scores: Tensor, labels: Tensor) -> Tensor:
    """The label [Q] with the largest sum of exp(score / 0.07) among the neighbours of each query.

    Args:
        scores: cosines [Q, k], falling.
        labels: int64 [Q, k], of the neighbours.
    """
    weights = torch.exp((scores - scores[:, :1]).double() / TEMPERATURE)  # [Q, k]; the largest is 1
    votes = torch.zeros_like(weights)
    for place in range(labels.shape[1]):  # [Q, k] at a time, never [Q, k, k]
        votes += weights[:, place, None] * (labels == labels[:, place, None])
    return labels.gather(1, votes.argmax(dim=1, keepdim=True)).squeeze(1)


def classify(features: Tensor, labels: Tensor, neighbours: int, ranks: Ranks = ALONE) -> float:
    """The share of pictures whose k nearest others vote for their label; each rank judges a part. A collective.

    A picture that is alone of its label cannot be right and does not count.

    Args:
        features: unit rows [N, D], the same on every rank.
        labels: int64 [N].
        neighbours: k, at most N - 1.
        ranks: the processes that share the work.
    """
    _, place, counts = labels.unique(return_inverse=True, return_counts=True)
    start, stop = rank_slice(len(labels), ranks.rank, ranks.world_size)
    right = torch.zeros((), dtype=torch.int64)
    judged = counts[place] > 1
    if stop > start:
        scores, rows = nearest(features[start:stop], features, neighbours + 1)
        itself = rows == torch.arange(start, stop)[:, None]
        itself[:, -1] |= ~itself.any(dim=1)  # crowded out by as good ones: then the last of these goes
        others = ~itself
        scores, rows = (each[others].view(-1, neighbours) for each in (scores, rows))
        right = ((vote(scores, labels[rows]) == labels[start:stop]) & judged[start:stop]).sum()
    if ranks.control_group is not None:
        dist.all_reduce(right, group=ranks.control_group)
    return float(right) / int(judged.sum())


def evaluate_knn(
    embed_fn: EmbedFn,
    set_dir: Path,
    image_size: int,
    batch_size: int,
    neighbours: int,
    ranks: Ranks = ALONE,
    *,
    flip: bool = True,
) -> KnnResult:
    """Classify the pictures of a set by their neighbours, over all ranks; every rank gets the same result.

    Args:
        embed_fn: images [B, 3, S, S] in [-1, 1] -> embeddings [B, D].
        set_dir: shards with labels; roles are not looked at.
        image_size: side of the network's input in pixels.
        batch_size: pictures per rank and forward pass.
        neighbours: k; fewer where the set has no more other pictures.
        ranks: the processes that share the work.
        flip: add the mirrored picture's embedding.

    Raises:
        UserError: no such set, or one without two pictures of a label.
        WorkError: a damaged picture or embeddings that are not finite.
    """
    name = f"kNN set {set_dir}"
    with ranks.agree(lambda: StoredSet(set_dir), "all") as samples:
        labels = torch.from_numpy(ranks.agree(lambda: samples.labels_and_roles()[0], "all"))
        if len(labels.unique()) == len(labels):
            raise UserError(f"{name}: no label has two pictures, so that none has a neighbour of its own label")
        embeddings = embed_pictures(
            embed_fn,
            decoding(samples.read, image_size, name),
            len(samples),
            batch_size,
            flip=flip,
            name=name,
            ranks=ranks,
        )
    k = min(neighbours, len(labels) - 1)
    accuracy = classify(embeddings.normalized(), labels, k, ranks)
    return KnnResult(Path(set_dir).resolve().name, accuracy, k, len(labels), len(labels.unique()))
