"""`identities.parquet` of a set: the label, name and number of pictures of each identity."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dist_train.errors import UserError
from dist_train.runtime.text import first_line

_KINDS = {"label": pa.int64(), "count": pa.int64(), "name": pa.string()}


def read_identities(path: Path, column: str, num_classes: int | None = None) -> pa.Table:
    """Columns `label` and `column` of the table at `path`, without nulls, each label once.

    Args:
        path: of the table.
        column: `name` or `count`.
        num_classes: of the set; labels are below it. None: labels are 0 .. rows - 1, as this project writes them.

    Raises:
        UserError: missing, damaged, or with labels, counts or names that a set cannot have.
    """
    try:
        with pq.ParquetFile(path) as file:
            rows = file.metadata.num_rows
            most = rows if num_classes is None else num_classes
            if rows > most:  # before it is unpacked: a small file may hold any number of rows
                raise UserError(f"{path}: {rows} rows for {most} identities; write the set again")
            table = file.read(["label", column])
        if sorted(table.column_names) != sorted(["label", column]):
            raise UserError(f"{path}: columns {', '.join(table.column_names)}, expected label and {column}, once each")
        table = table.cast(pa.schema([(name, _KINDS[name]) for name in table.column_names]))
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path}: cannot be read: it is not there") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or first_line(error)}") from error
    except (ValueError, KeyError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read: {first_line(error)}; write the set again") from error
    for name in table.column_names:
        if table[name].null_count:
            raise UserError(f"{path}: column {name} has {table[name].null_count} rows without a value")
    labels = table["label"].to_numpy()
    if len(labels) and not 0 <= labels.min() <= labels.max() < most:
        raise UserError(f"{path}: labels {labels.min()} .. {labels.max()}, expected 0 .. {most - 1}")
    if len(np.unique(labels)) < len(labels):
        raise UserError(f"{path}: {len(labels) - len(np.unique(labels))} labels are there twice")
    if column == "count" and len(labels) and table["count"].to_numpy().min() < 0:
        raise UserError(f"{path}: an identity has {table['count'].to_numpy().min()} pictures")
    return table
