"""Readers of the files of units, and of a set's list of rejects; errors name a damaged file and the way out."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dist_train.errors import WorkError
from dist_train.runtime.text import kind_and_line

MADE = {"given": int, "kept": int, "pictures": int, "reasons": dict, "seconds": int | float}
SEALED = {"name": str, "samples": int, "bytes": int, "sha256": str, "labels": str}
SET_ASIDE = {"error": str}
_MOST_BYTES = 1 << 20  # largest file of a mark


def read_mark(path: Path, kinds: dict[str, Any]) -> dict[str, Any]:
    """The JSON object in a unit's mark, with values of `kinds` by name.

    Raises:
        WorkError: missing or damaged.
    """
    try:
        with path.open("rb") as file:
            body = json.loads(file.read(_MOST_BYTES).decode())
        wrong = [name for name, kind in kinds.items() if not isinstance(body[name], kind)]
        if wrong:
            raise ValueError(f"{wrong[0]} is {type(body[wrong[0]]).__name__}")
        if not all(isinstance(count, int) for count in body.get("reasons", {}).values()):
            raise ValueError("reasons without counts")
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise _damaged(path, error) from error
    return dict(body)


def read_statistics(path: Path, columns: list[str], schema: pa.Schema) -> pa.Table:
    """Columns of a unit's statistics, of the types that `schema` has.

    Raises:
        WorkError: missing or damaged.
    """
    try:
        table = pq.read_table(path, columns=columns)
        table = table.cast(pa.schema([schema.field(name) for name in table.column_names])).select(columns)
        table.validate(full=True)
    except (OSError, ValueError, TypeError, LookupError, pa.ArrowException) as error:
        raise _damaged(path, error) from error
    if "reason" in columns:
        made = table.filter(table["reason"].is_null())
        for name in {"position", "identity", "digest", "sizes"} & set(columns):
            if made[name].null_count:
                raise _damaged(path, ValueError(f"no {name} where pictures were made"))
    return table


def read_rejects(path: Path) -> pa.Table:
    """Columns `source`, `reason` and `detail` of a set's `rejects.parquet`, as text.

    Raises:
        WorkError: missing or damaged.
    """
    columns = ["source", "reason", "detail"]
    try:
        table = pq.read_table(path, columns=columns).select(columns)
        table = table.cast(pa.schema([(name, pa.string()) for name in columns]))
        table.validate(full=True)
    except (OSError, ValueError, LookupError, pa.ArrowException) as error:
        raise WorkError(f"{path}: damaged: {kind_and_line(error)}; the set itself is whole") from error
    return table


def _damaged(path: Path, error: Exception) -> WorkError:
    reason = "missing" if isinstance(error, FileNotFoundError) else f"damaged: {kind_and_line(error)}"
    # The shard was written from a file that may be deleted already.
    unit = path.parents[1] / "units" / f"{path.stem}.json"
    marks = f"{unit} and {path}" if path.parent.name == "shards" else unit
    return WorkError(f"{path}: {reason}; remove {marks} and run the same command again: its unit is made anew")
