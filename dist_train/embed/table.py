"""Files of embeddings: parquet, or a NumPy array with a table of names beside it.

Both carry a description of how they were made: model, options, source. What does not agree with it is refused later.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dist_train.embed.pictures import Picture, Place
from dist_train.errors import UserError, WorkError
from dist_train.runtime.files import map_array
from dist_train.runtime.text import first_line, shown

FORMAT_VERSION = 1
SUFFIXES = (".parquet", ".npy")
_METADATA_KEY = b"headcount"
_READ_ROWS = 1 << 14
_MOST_DIM = (1 << 31) - 1  # what a column of lists can say

NAMES = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),  # in the source
        pa.field("offset", pa.int64(), nullable=False),  # in an archive; 0 for files
        pa.field("size", pa.int64(), nullable=False),
        pa.field("identity", pa.string()),
        pa.field("label", pa.int64()),
        pa.field("score", pa.float32()),  # of the face detector
        pa.field("faces", pa.int32()),  # found in the photo
        pa.field("landmarks", pa.list_(pa.float32(), 10)),  # x, y of five points, pixels of the photo
        pa.field("norm", pa.float32(), nullable=False),  # mean length of the network's raw outputs
    ]
)
"""The columns beside the embedding, in both forms."""


def embedding_schema(embedding_dim: int) -> pa.Schema:
    """Columns of a table of embeddings [N, D]."""
    return NAMES.append(pa.field("embedding", pa.list_(pa.float32(), embedding_dim), nullable=False))


def embedding_table(
    places: Sequence[Place],
    pictures: Sequence[Picture],
    norms: NDArray[np.float32],
    features: NDArray[np.float32],
) -> pa.Table:
    """Rows of pictures with their embeddings [N, D]; norms [N]."""
    width = features.shape[1]
    flat = pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), width)
    points = [None if p.landmarks is None else p.landmarks.reshape(-1).tolist() for p in pictures]
    columns: list[Any] = [
        [place.path for place in places],
        [place.offset for place in places],
        [place.size for place in places],
        [picture.identity for picture in pictures],
        [picture.label for picture in pictures],
        [picture.score for picture in pictures],
        [picture.faces for picture in pictures],
        points,
        pa.array(norms, pa.float32()),
        flat,
    ]
    schema = embedding_schema(width)
    return pa.table([pa.array(c, f.type) for c, f in zip(columns[:-1], NAMES, strict=True)] + [flat], schema=schema)


def as_array(column: pa.Array | pa.ChunkedArray) -> NDArray[np.float32]:
    """A column of embeddings as float32 [N, D]."""
    width = column.type.list_size
    parts = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    arrays = [part.flatten().to_numpy(zero_copy_only=False).reshape(-1, width) for part in parts]
    return np.concatenate([np.empty((0, width), np.float32), *arrays])


def with_description(schema: pa.Schema, description: dict[str, Any]) -> pa.Schema:
    """`schema` with the description in its metadata."""
    return schema.with_metadata({_METADATA_KEY: json.dumps(description).encode()})


def names_path(path: Path) -> Path:
    """The file that names the rows of embeddings at `path`: itself, or the table beside a `.npy`."""
    return path.with_suffix(".names.parquet") if path.suffix == ".npy" else path


def rejects_path(path: Path) -> Path:
    """The list of inputs without an embedding, beside embeddings at `path`."""
    return path.with_name(f"{path.name}.rejects.csv")


class EmbeddingFile:
    """Embeddings that `headcount embed` wrote.

    Args:
        path: a `.parquet`, or a `.npy` with its `.names.parquet` beside it.

    Raises:
        UserError: missing, damaged, or written by something else.
    """

    def __init__(self, path: Path) -> None:
        if path.suffix not in SUFFIXES:
            raise UserError(f"embeddings {path}: expected a .parquet or .npy that `headcount embed` wrote")
        if not path.is_file():
            raise UserError(f"embeddings {path}: no such file; make it with `headcount embed MODEL SOURCE {path}`")
        self.path = path
        names = names_path(path)
        try:
            self._names = pq.ParquetFile(names)
            schema = self._names.schema_arrow
            self.description = _described((schema.metadata or {})[_METADATA_KEY])
            self._array = load_array(path, "r") if path.suffix == ".npy" else None
            wanted = NAMES if self._array is not None else embedding_schema(int(self.description["embedding_dim"]))
            if wrong := [field.name for field in wanted if not _has(schema, field)]:
                raise ValueError(f"column {wrong[0]} is missing or of another type; embed again")
        except KeyError:
            raise UserError(
                f"embeddings {names}: not written by `headcount embed`: it does not say by which model"
            ) from None
        except FileNotFoundError as error:
            raise UserError(f"embeddings {path}: {names.name} is not beside it; it names the rows") from error
        except (OSError, ValueError, pa.ArrowException) as error:
            raise UserError(f"embeddings {names}: cannot be read: {first_line(error)}") from error
        if self.description.get("version") != FORMAT_VERSION:
            raise UserError(
                f"embeddings {path}: version {self.description.get('version')}, expected {FORMAT_VERSION}; embed again"
            )
        self.count: int = self._names.metadata.num_rows
        self.embedding_dim = int(self.description["embedding_dim"])
        if self._array is not None and self._array.shape != (self.count, self.embedding_dim):
            raise UserError(
                f"embeddings {path}: {list(self._array.shape)}, but {names.name} names {self.count} rows of "
                f"{self.embedding_dim}; both must come from the same `headcount embed`"
            )

    def batches(self) -> Iterator[tuple[pa.RecordBatch, NDArray[np.float32]]]:
        """Rows in order: their `NAMES` columns, and their embeddings float32 [n, D].

        Raises:
            WorkError: the file is damaged.
        """
        start = 0
        try:
            for batch in self._names.iter_batches(_READ_ROWS):
                stop = start + batch.num_rows
                if self._array is None:
                    features = as_array(batch.column("embedding"))
                else:
                    features = np.asarray(self._array[start:stop], np.float32)
                batch.validate(full=True)
                if not len(features) == batch.num_rows == len(batch.column("path")):
                    raise ValueError(f"{batch.num_rows} rows with {len(features)} embeddings")
                yield batch.select(NAMES.names).cast(NAMES), features
                start = stop
        except (OSError, ValueError, pa.ArrowException) as error:
            raise WorkError(f"embeddings {self.path}: damaged after row {start}: {error}") from error

    def names(self) -> Iterator[pa.RecordBatch]:
        """The `NAMES` columns of all rows, in order, without the embeddings.

        Raises:
            WorkError: the file is damaged.
        """
        start = 0
        try:
            for batch in self._names.iter_batches(_READ_ROWS, columns=NAMES.names):
                batch.validate(full=True)
                yield batch.select(NAMES.names).cast(NAMES)
                start += batch.num_rows
        except (OSError, ValueError, pa.ArrowException) as error:
            raise WorkError(f"embeddings {self.path}: damaged after row {start}: {error}") from error

    def close(self) -> None:
        """Close the files."""
        self._names.close()


def unit_length(
    features: NDArray[np.float32], names: pa.RecordBatch, path: Path, rows: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Embeddings [n, D], each divided by its length.

    Args:
        features: as stored, [n, D].
        names: their columns.
        path: of the file.
        rows: their numbers in it, [n].

    Raises:
        UserError: an embedding is zero or not finite.
    """
    lengths = np.linalg.norm(features.astype(np.float64), axis=1)
    bad = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
    if len(bad):
        row = int(bad[0])
        what = "zero" if lengths[row] == 0 else "not finite"
        raise UserError(
            f"embeddings {path}: row {rows[row]}, {names.column('path')[row]}: its embedding is {what}; the model is "
            "damaged or the file was changed: embed again"
        )
    unit: NDArray[np.float32] = (features / lengths[:, None]).astype(np.float32)
    return unit


def load_array(path: Path, mode: Literal["r", "c"]) -> NDArray[np.float32]:
    """A `.npy` of float32 [N, D], mapped into memory.

    Raises:
        OSError: it cannot be read.
        ValueError: damaged, or another array.
    """
    array = map_array(path, mode)
    if array.ndim != 2 or array.dtype != np.float32:
        raise ValueError(f"holds {array.dtype} {list(array.shape)}, expected float32 [N, D]")
    return array


def load_shaped(path: Path, kind: type, shape: Sequence[int]) -> NDArray[Any]:
    """A `.npy` of a known type and shape, mapped into memory, copied on write.

    Raises:
        OSError: it cannot be read.
        ValueError: damaged, or another array.
    """
    array = map_array(path, "c")
    if array.dtype != kind or list(array.shape) != list(shape):
        raise ValueError(f"{path.name} is {array.dtype} {list(array.shape)}, expected {np.dtype(kind)} {list(shape)}")
    return array


def _described(text: bytes) -> dict[str, Any]:
    """The description in a file's metadata."""
    try:
        body = json.loads(text)
        dim = int(body["embedding_dim"])
        body["version"], body["image_size"], body["flip"]
        body["model"]["name"], body["model"]["sha256"], body["source"]["path"]
    except (ValueError, TypeError, LookupError, RecursionError, OverflowError) as error:
        raise ValueError(f"its description is damaged ({type(error).__name__})") from error
    if not 1 <= dim <= _MOST_DIM:
        raise ValueError(f"its description is damaged: embedding_dim {shown(dim)}, expected 1 to {_MOST_DIM}")
    return dict(body)


def _has(schema: pa.Schema, field: pa.Field) -> bool:
    found = schema.get_all_field_indices(field.name)
    return len(found) == 1 and schema.field(found[0]).type == field.type


def start_array(file: IO[bytes], shape: tuple[int, ...], kind: str) -> None:
    """Write the head of a `.npy` of `shape`; its numbers follow, row after row, of a type like `<f4`."""
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(kind)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_2_0(cast(Any, file), header)


def write_array(file: IO[bytes], parts: Iterator[NDArray[np.float32]], shape: tuple[int, int]) -> None:
    """Write arrays [n, D], one below the other, as a `.npy` of `shape`."""
    start_array(file, shape, "<f4")
    for part in parts:
        file.write(np.ascontiguousarray(part, "<f4").tobytes())
