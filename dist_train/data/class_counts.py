"""How many pictures each class has, for margins that depend on it."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from dist_train.data.config import DataConfig
from dist_train.data.manifest import IDENTITIES_NAME
from dist_train.data.sources import open_sources
from dist_train.errors import UserError


def class_counts(config: DataConfig) -> Tensor:
    """Pictures of each class over all sets of `config`, [C] int64, from each set's `identities.parquet`.

    Raises:
        UserError: a set has no such table, or one that does not fit.
    """
    sources = open_sources(config.model_copy(update={"check_at_start": False}))
    counts = torch.zeros(sources.manifest.num_classes, dtype=torch.int64)
    for each in sources.sets:
        path = Path(each.path) / IDENTITIES_NAME
        try:
            table = pq.read_table(path, columns=["label", "count"])
        except (OSError, pa.ArrowException) as error:
            raise UserError(
                f"{path}: cannot be read ({error}), and head.margin=adaptive takes the pictures of each class from it; "
                "write the set with `headcount prep`, or take another margin"
            ) from error
        labels, found = (torch.from_numpy(table[name].to_numpy().copy()) for name in ("label", "count"))
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < each.manifest.num_classes:
            raise UserError(
                f"{path}: labels {int(labels.min())} .. {int(labels.max())}, but the set has "
                f"{each.manifest.num_classes} classes; write the set again"
            )
        counts.index_add_(0, labels + each.first_label, found)
    return counts
