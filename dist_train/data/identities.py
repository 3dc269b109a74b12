"""`identities.parquet` of a set: the label, name and number of pictures of each identity."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dist_train.errors import UserError
from dist_train.runtime.distinct import distinct
from dist_train.runtime.parquet import bounded_batches
from dist_train.runtime.text import first_line

_KINDS = {"label": pa.int64(), "count": pa.int64(), "name": pa.string()}


def read_identities(path: Path, column: str, num_classes: int | None = None, name: str = "") -> pa.Table:
    """Columns `label` and `column` of the table at `path`, without nulls, each label once.

    Args:
        path: of the table.
        column: `name` or `count`.
        num_classes: of the set; labels are below it. None: labels are 0 .. rows - 1, as this project writes them.
        name: of the table in messages, where it is a copy of another.

    Raises:
        UserError: missing, damaged, or with labels, counts or names that a set cannot have.
    """
    where = name or str(path)
    schema = pa.schema([(each, _KINDS[each]) for each in ("label", column)])
    try:
        metadata = pq.read_metadata(path)
        rows = metadata.num_rows
        most = rows if num_classes is None else num_classes
        if rows > most:  # before it is unpacked: a small file may hold any number of rows
            raise UserError(f"{where}: {rows} rows for {most} identities; write the set again")
        found = [each for each in metadata.schema.to_arrow_schema().names if each in schema.names]
        if sorted(found) != sorted(schema.names):
            raise UserError(f"{where}: columns {', '.join(found)}, expected label and {column}, once each")
        table = pa.Table.from_batches([batch.cast(schema) for batch in bounded_batches(path, schema.names)], schema)
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{where}: cannot be read: it is not there") from error
    except OSError as error:
        raise UserError(f"{where}: cannot be read: {error.strerror or first_line(error)}") from error
    except (ValueError, KeyError, pa.ArrowException) as error:
        raise UserError(f"{where}: cannot be read: {first_line(error)}; write the set again") from error
    for each in table.column_names:
        if table[each].null_count:
            raise UserError(f"{where}: column {each} has {table[each].null_count} rows without a value")
    labels = table["label"].to_numpy()
    if len(labels) and not 0 <= labels.min() <= labels.max() < most:
        raise UserError(f"{where}: labels {labels.min()} .. {labels.max()}, expected 0 .. {most - 1}")
    if (twice := len(labels) - len(distinct(labels))) > 0:
        raise UserError(f"{where}: {twice} labels are there twice")
    if column == "count" and len(labels) and table["count"].to_numpy().min() < 0:
        raise UserError(f"{where}: an identity has {table['count'].to_numpy().min()} pictures")
    return table
