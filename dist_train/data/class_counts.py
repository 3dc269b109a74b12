"""How many pictures each class has, for margins that depend on it."""

from pathlib import Path

import torch
from torch import Tensor

from dist_train.data.identities import read_identities
from dist_train.data.manifest import IDENTITIES_NAME
from dist_train.data.sources import Sources
from dist_train.errors import UserError


def class_counts(sources: Sources) -> Tensor:
    """Pictures of each class over all sets of a run, [C] int64, from each set's `identities.parquet`.

    Raises:
        UserError: a set has no such table, or one that does not fit.
    """
    counts = torch.zeros(sources.manifest.num_classes, dtype=torch.int64)
    for each in sources.labelled:
        path = Path(each.path) / IDENTITIES_NAME
        try:
            table = read_identities(path, "count", each.manifest.num_classes)
        except UserError as error:
            raise UserError(
                f"{error}; head.margin=adaptive takes the pictures of each class from it: write the set with "
                "`headcount prep`, or take another margin"
            ) from error
        labels, found = (torch.from_numpy(table[name].to_numpy().copy()) for name in ("label", "count"))
        counts.index_add_(0, labels + each.first_label, found)
    return counts
