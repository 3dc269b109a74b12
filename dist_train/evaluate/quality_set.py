"""The quality of a set's pictures: the norm of the embedding, the detector's score, or a table; and what it tells."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from dist_train.data.manifest import load_manifest
from dist_train.errors import UserError
from dist_train.evaluate.config import QualityConfig
from dist_train.evaluate.embedded_set import EmbeddedSet, embed_set
from dist_train.evaluate.judging import Judging
from dist_train.evaluate.operating_points import notes_on_rate, threshold_at
from dist_train.evaluate.pair_counts import order_by_identity
from dist_train.evaluate.quality import QualityResult, judge_quality
from dist_train.evaluate.scored_pairs import genuine_pairs
from dist_train.runtime.parquet import bounded_batches
from dist_train.runtime.ranks import ALONE, Ranks
from dist_train.runtime.text import first_line

NORM, SCORE = "norm", "score"
SUFFIXES = (".csv", ".parquet")
_COLUMNS = {"key": pa.string(), "quality": pa.float64()}
_MOST_ROWS = 1 << 26
_TOLD = 5  # pictures named in a message


def is_file(by: str) -> bool:
    """Whether a quality is a table's."""
    return by not in (NORM, SCORE)


def quality_paths(entry: QualityConfig) -> tuple[Path, ...]:
    """The files and directories that an entry names."""
    return (entry.set, Path(entry.by)) if is_file(entry.by) else (entry.set,)


def check_quality(entry: QualityConfig) -> None:
    """Look whether set and table are there.

    Raises:
        UserError: one is not.
    """
    load_manifest(entry.set)
    if is_file(entry.by):
        _check_table(Path(entry.by))


def evaluate_quality(entry: QualityConfig, how: Judging) -> QualityResult:
    """What a quality tells of a model's errors on a set of shards. A collective.

    Raises:
        UserError: no such set or table, pictures without a quality, no pair of one identity or none of two.
        WorkError: a damaged picture or embeddings that are not finite.
    """
    how.ranks.agree(lambda: check_quality(entry), "all")
    embedded = embed_set(entry.set, how, [SCORE] if entry.by == SCORE else [])
    return quality_of(embedded, entry.by, entry.fmr, how.ranks)


def quality_of(embedded: EmbeddedSet, by: str, fmr: float, ranks: Ranks = ALONE) -> QualityResult:
    """What a quality tells of the errors on a set, over the pictures with a label. A collective.

    Args:
        embedded: the set; with its column "score" if that is asked for.
        by: `norm`, `score` or the path of a table.
        fmr: whose threshold errors are at.
        ranks: the processes that share the work.

    Raises:
        UserError: pictures without a quality, no pair of one identity or none of two.
        WorkError: embeddings that are not finite.
    """
    ordered = order_by_identity(embedded.features, embedded.labels, f"set {embedded.path}")
    values = ranks.agree(lambda: qualities(embedded, by, ordered.order), "all")
    threshold = threshold_at(ordered, fmr, ranks)
    pairs = genuine_pairs(ordered.features, torch.from_numpy(ordered.identity), ranks)
    found = judge_quality(
        pairs.score < np.float32(threshold),
        np.minimum(values[pairs.left], values[pairs.right]),
        ordered.identity[pairs.left],
        threshold=threshold,
        pictures=len(values),
        title=(embedded.name, Path(by).name if is_file(by) else by, fmr),
    )
    return replace(found, notes=(*notes_on_rate(fmr, ordered.impostor_pairs), *found.notes))


def qualities(embedded: EmbeddedSet, by: str, pictures: np.ndarray) -> np.ndarray:
    """The quality of each of some pictures, float64 [n].

    Raises:
        UserError: a picture without one, or one that is not finite.
    """
    keys = [embedded.keys[number] for number in pictures]
    if by == NORM:
        found: list[object] = embedded.norms[torch.from_numpy(pictures)].tolist()
    elif by == SCORE:
        found = [embedded.columns[SCORE][number] for number in pictures]
    else:
        if len(set(keys)) < len(keys):
            raise UserError(f"set {embedded.path}: pictures share their keys, so that a table cannot tell them apart")
        table = read_qualities(Path(by))
        found = [table.get(key) for key in keys]
    where = f"quality {by}" if is_file(by) else f"set {embedded.path}"
    bad = [key for key, value in zip(keys, found, strict=True) if not _is_quality(value)]
    if bad:
        what = "a row" if is_file(by) else f"a {by} that is a number"
        raise UserError(
            f"{where}: {len(bad):,} of {len(keys):,} pictures are without {what}: {_named(bad)}; every picture of the "
            "set needs a quality"
        )
    return np.array(found, np.float64)


def _is_quality(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _named(keys: Sequence[str]) -> str:
    return ", ".join(keys[:_TOLD]) + (", ..." if len(keys) > _TOLD else "")


def _check_table(path: Path) -> None:
    if path.suffix not in SUFFIXES:
        raise UserError(f"quality {path}: expected norm, score, or a .csv or .parquet with the columns key and quality")
    if not path.is_file():
        raise UserError(f"quality {path}: no such file")


def read_qualities(path: Path) -> dict[str, float]:
    """The quality of each key in a table with the columns key and quality.

    Raises:
        UserError: missing, malformed or too large, a key twice, or a quality that is no finite number.
    """
    _check_table(path)
    try:
        table = _read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)
        for name in _COLUMNS:
            if table[name].null_count:
                raise ValueError(f"column {name} has {table[name].null_count:,} rows without a value")
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise UserError(f"quality {path}: {first_line(error)}; expected the columns key and quality") from error
    keys, values = table["key"].to_pylist(), table["quality"].to_numpy()
    if len(bad := np.flatnonzero(~np.isfinite(values))):
        raise UserError(
            f"quality {path}: {len(bad):,} rows are no finite number: {_named([keys[row] for row in bad[: _TOLD + 1]])}"
        )
    found = dict(zip(keys, values.tolist(), strict=True))
    if len(found) < len(keys):
        twice = next(key for key, count in Counter(keys).items() if count > 1)
        raise UserError(f"quality {path}: {len(keys) - len(found):,} keys are there twice, the first is {twice}")
    return found


def _read_parquet(path: Path) -> pa.Table:
    from pyarrow import parquet

    metadata = parquet.read_metadata(path)
    if metadata.num_rows > _MOST_ROWS:  # before it is unpacked
        raise ValueError(f"{metadata.num_rows:,} rows, expected at most {_MOST_ROWS:,}")
    schema = pa.schema(list(_COLUMNS.items()))
    return pa.Table.from_batches([batch.cast(schema) for batch in bounded_batches(path, schema.names)], schema)


def _read_csv(path: Path) -> pa.Table:
    from pyarrow import csv

    options = csv.ConvertOptions(include_columns=list(_COLUMNS), column_types=_COLUMNS)
    with csv.open_csv(path, convert_options=options) as reader:
        parts, rows = [], 0
        for batch in reader:
            parts.append(batch)
            if (rows := rows + batch.num_rows) > _MOST_ROWS:
                raise ValueError(f"more than {_MOST_ROWS:,} rows")
        return pa.Table.from_batches(parts, reader.schema)
