"""Embeddings that `headcount embed` wrote, as a set that evaluations work on."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from dist_train.embed.table import NAMES, EmbeddingFile
from dist_train.errors import UserError, WorkError
from dist_train.evaluate.embedded_set import EmbeddedSet

NONE = -1  # label of a picture that has none


def read_embedded(path: Path, columns: Sequence[str] = ()) -> EmbeddedSet:
    """The pictures of a file of embeddings, in its order; all of them are held in memory.

    Identities without a label are numbered in the order of their names, after the labels that there are.

    Args:
        path: a `.parquet`, or a `.npy` with its table of names.
        columns: of the file's table, e.g. "score" or "faces".

    Raises:
        UserError: missing, damaged, without rows, written by something else, or a column that it does not have.
        WorkError: damaged within, or embeddings that are not finite.
    """
    if unknown := [column for column in columns if column not in NAMES.names]:
        raise UserError(f"embeddings {path}: no column {unknown[0]!r}; it has {', '.join(NAMES.names)}")
    with closing(EmbeddingFile(path)) as file:
        features = torch.empty(file.count, file.embedding_dim)
        names: dict[str, list[object]] = {name: [] for name in {"path", "label", "identity", "norm", *columns}}
        start = 0
        for rows, block in file.batches():
            features[start : start + len(block)] = torch.from_numpy(block.copy())
            for name, found in names.items():
                found += rows.column(name).to_pylist()
            start += len(block)
    if not file.count:
        raise UserError(f"embeddings {path}: no rows in it")
    if not bool(features.isfinite().all()):
        bad = int((~features.isfinite().all(dim=1)).nonzero()[0])
        raise WorkError(f"embeddings {path}: row {bad}, {names['path'][bad]}, is not finite")
    return EmbeddedSet(
        path.stem,
        path,
        torch.nn.functional.normalize(features, dim=1),
        torch.tensor(names["norm"], dtype=torch.float32),
        _labels(names["label"], names["identity"]),
        [str(each) for each in names["path"]],
        [None] * file.count,
        {column: names[column] for column in columns},
    )


def read_description(path: Path) -> dict[str, Any]:
    """How the embeddings of a file were made, as JSON values.

    Raises:
        UserError: missing, damaged, or written by something else.
    """
    with closing(EmbeddingFile(path)) as file:
        return file.description


def _labels(labels: list[object], identities: list[object]) -> torch.Tensor:
    """A label for each row, int64 [N]: its own, or one for its identity, or -1."""
    first = 1 + max((label for label in labels if isinstance(label, int)), default=-1)
    without = {who for label, who in zip(labels, identities, strict=True) if label is None and isinstance(who, str)}
    numbers: dict[object, int] = {who: first + number for number, who in enumerate(sorted(without))}
    found = [
        label if isinstance(label, int) else numbers.get(who, NONE)
        for label, who in zip(labels, identities, strict=True)
    ]
    return torch.tensor(found, dtype=torch.int64)
