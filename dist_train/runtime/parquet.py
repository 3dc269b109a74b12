"""Parquet tables that anybody may have written: what is in them is measured before it is unpacked.

A value that many rows share is stored once, and rows that are alike as a count: kilobytes may stand for gigabytes.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

_BATCH_BYTES = 64 << 20  # of a column in a batch
_BYTES_OF = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}
_WIDEST_BYTES = 64  # of values of one size, such as decimals


def bounded_batches(
    path: Path,
    columns: Sequence[str],
    values_per_row: int = 1,
    *,
    row_bytes: int = 1024,
    text_as_bytes: bool = False,
) -> Iterator[pa.RecordBatch]:
    """Some columns of a table in their order, batch by batch: text, numbers, and lists of numbers.

    Args:
        path: of the table.
        columns: their names, each of which the table has once.
        values_per_row: how long lists are at most, on average.
        row_bytes: most that a column takes for a row, on average; names, paths and sentences have a tenth of 1 KiB.
        text_as_bytes: give text as bytes, which need not be UTF-8; without, it has to be.

    Raises:
        OSError: it cannot be read.
        KeyError: it does not have a column.
        ValueError: damaged, or a column takes more than `row_bytes` a row; `pa.ArrowException` for other kinds of
            damage.
    """
    with pq.ParquetFile(path) as file:
        metadata = file.metadata
        schema = metadata.schema.to_arrow_schema()
        kinds = pa.schema([schema.field(name) for name in columns])
        given = pa.schema([field.with_type(_BYTES_OF.get(field.type, field.type)) for field in kinds])
        given = given if text_as_bytes else kinds
        # Goes through the columns, keeping nothing: what is damaged is an error here, where a question to the damaged
        # metadata of a column would end the process. A value at a time, as values may be of any length still.
        file.scan_contents(list(columns), batch_size=1)
        shared = _check_stored(metadata, columns, values_per_row, row_bytes)
    with pq.ParquetFile(path, metadata=metadata, read_dictionary=shared) as file:
        for batch in file.iter_batches(_BATCH_BYTES // row_bytes, columns=list(columns)):
            batch = batch.select(list(columns))
            for name, column in zip(columns, batch.columns, strict=True):
                if (size := _unpacked_bytes(column)) > _BATCH_BYTES:
                    raise ValueError(
                        f"column {name}: {size:,} bytes in {batch.num_rows:,} rows, expected at most {_BATCH_BYTES:,}"
                    )
            batch = batch.cast(kinds).cast(given)  # first what rows share is unpacked
            batch.validate(full=True)
            yield batch


def _check_stored(metadata: pq.FileMetaData, columns: Sequence[str], values_per_row: int, row_bytes: int) -> list[int]:
    """Refuse columns that hold too much before rows share anything; numbers of those in which rows share values."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    rows = metadata.num_rows
    most = _BATCH_BYTES + row_bytes * rows
    shared = []
    for number in range(metadata.num_columns):
        kind = metadata.schema.column(number)
        if not any(kind.path == name or kind.path.startswith(f"{name}.") for name in columns):
            continue
        chunks = [group.column(number) for group in groups]
        if (count := sum(chunk.num_values for chunk in chunks)) > values_per_row * rows:
            raise ValueError(f"column {kind.path}: {count:,} values in {rows:,} rows")
        if (size := sum(chunk.total_uncompressed_size for chunk in chunks)) > most:
            raise ValueError(f"column {kind.path}: {size:,} bytes in {rows:,} rows, expected at most {most:,}")
        if kind.physical_type == "BYTE_ARRAY" and kind.path not in columns:  # Arrow unpacks it before we can look
            raise ValueError(f"column {kind.path}: text inside of lists or records")
        encodings = {encoding for chunk in chunks for encoding in chunk.encodings}
        if "DELTA_BYTE_ARRAY" in encodings:  # a value may begin with all of the one before
            raise ValueError(f"column {kind.path}: encoding DELTA_BYTE_ARRAY, expected PLAIN or a dictionary")
        if kind.length > _WIDEST_BYTES:
            raise ValueError(f"column {kind.path}: values of {kind.length} bytes, expected at most {_WIDEST_BYTES}")
        if any("DICTIONARY" in encoding for encoding in encodings):
            shared.append(number)
    return shared


def _unpacked_bytes(column: pa.Array) -> int:
    """Bytes of a column once each row has its own value."""
    if not pa.types.is_dictionary(column.type):
        return int(column.nbytes)
    return int(pc.sum(pc.binary_length(column.dictionary).take(column.indices)).as_py() or 0)
