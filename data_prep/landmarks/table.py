"""A table of landmarks: CSV, TSV or parquet with a path, ten coordinates and perhaps a box, a row a photo."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_prep.faces.table import EDGES, PATH, POINTS, SEPARATORS
from dist_train.errors import UserError
from dist_train.runtime.digest import sha256_of
from dist_train.runtime.parquet import bounded_batches
from dist_train.runtime.text import first_line
from dist_train.section import Section

_BLOCK_BYTES = 4 << 20


class LandmarkTable(Section):
    """A table as a plan stores it; the digest tells whether the file has changed since.

    Attributes:
        path: path of the file.
        sha256: digest of its bytes.
    """

    path: Path
    sha256: str


def open_table(path: Path) -> LandmarkTable:
    """The table at `path`, whose columns are there.

    Raises:
        UserError: missing, of another kind, or without a column.
    """
    for _ in read_rows(path):
        break
    try:
        return LandmarkTable(path=path.absolute(), sha256=sha256_of(path))
    except OSError as error:
        raise UserError(f"landmarks {path}: {error.strerror}") from error


def read_rows(path: Path) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
    """Rows of a table, batch by batch: paths [n], and [n, 14] box (NaN without) and points in pixels of the photo.

    Raises:
        UserError: missing, of another kind, without a column, or with something else than a number in it.
    """
    try:
        batches = _parquet(path) if path.suffix == ".parquet" else _csv(path)
        for batch in batches:
            paths = batch.column(PATH).to_pylist()
            if not all(paths):
                raise UserError(f"landmarks {path}: a row has no path")
            found = [name for name in EDGES if name in batch.schema.names]
            if found and len(found) < len(EDGES):
                raise UserError(f"landmarks {path}: has {', '.join(found)} alone of a box's columns {', '.join(EDGES)}")
            values = np.full((batch.num_rows, len(EDGES) + len(POINTS)), np.nan, np.float32)
            for at, name in enumerate((*EDGES, *POINTS)):
                if name in POINTS or found:
                    column = pc.fill_null(pc.cast(batch.column(name), pa.float32(), safe=False), float("nan"))
                    values[:, at] = column.to_numpy(zero_copy_only=False)
            yield paths, values
    except UserError:
        raise
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise UserError(
            f"landmarks {path}: {first_line(error)}; expected a .csv, .tsv or .parquet with columns {PATH}, "
            f"{', '.join(POINTS)} and, if wanted, {', '.join(EDGES)}"
        ) from error


def _csv(path: Path) -> Iterator[pa.RecordBatch]:
    from pyarrow import csv

    if path.suffix not in SEPARATORS:
        raise KeyError(f"of no known kind ({path.suffix or 'no ending'})")
    with path.open("rb") as file:
        head = file.readline(_BLOCK_BYTES).decode("utf-8-sig").strip().split(SEPARATORS[path.suffix])
    present = {name.strip('"') for name in head}
    wanted = [PATH, *(name for name in EDGES if name in present), *POINTS]
    kinds = {name: pa.string() if name == PATH else pa.float32() for name in wanted}
    with csv.open_csv(
        path,
        read_options=csv.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False),
        parse_options=csv.ParseOptions(delimiter=SEPARATORS[path.suffix]),
        convert_options=csv.ConvertOptions(include_columns=wanted, column_types=kinds, null_values=["", "nan", "NaN"]),
    ) as reader:
        yield from reader


def _parquet(path: Path) -> Iterator[pa.RecordBatch]:
    from pyarrow import parquet

    kinds = {field.name: field.type for field in parquet.read_schema(path)}
    for name in (PATH, *POINTS):
        if name not in kinds:
            raise KeyError(f"no column {name}")
        text = pa.types.is_string(kinds[name]) or pa.types.is_large_string(kinds[name])
        number = pa.types.is_floating(kinds[name]) or pa.types.is_integer(kinds[name])
        if not (text if name == PATH else number):
            raise KeyError(f"column {name} holds {kinds[name]}")
    yield from bounded_batches(path, [PATH, *(name for name in EDGES if name in kinds), *POINTS])
