"""How many pictures each class has, for margins that depend on it."""

import torch
from torch import Tensor

from dist_train.data.manifest import IDENTITIES_NAME
from dist_train.data.set_identities import identities_of
from dist_train.data.sources import Sources
from dist_train.errors import UserError


def class_counts(sources: Sources, retries: int) -> Tensor:
    """Pictures of each class over all sets of a run, [C] int64, from each set's `identities.parquet`.

    Args:
        sources: the sets.
        retries: further tries after a failure of a set's server.

    Raises:
        UserError: a set has no such table, or one that does not fit.
        WorkError: a server cannot be reached.
    """
    counts = torch.zeros(sources.manifest.num_classes, dtype=torch.int64)
    for each in sources.labelled:
        try:
            table = identities_of(each, "count", retries)
            if table is None:
                raise UserError(f"{each.path.rstrip('/')}/{IDENTITIES_NAME}: cannot be read: it is not there")
        except UserError as error:
            raise UserError(
                f"{error}; head.margin=adaptive takes the pictures of each class from it: write the set with "
                "`headcount prep`, or take another margin"
            ) from error
        labels, found = (torch.from_numpy(table[name].to_numpy().copy()) for name in ("label", "count"))
        counts.index_add_(0, labels + each.first_label, found)
    return counts
