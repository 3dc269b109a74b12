"""`findings.parquet`: what is wrong in a set, each with its evidence, and which set it is said of."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dist_train.errors import UserError
from dist_train.runtime.files import read_bounded
from dist_train.runtime.parquet import bounded_batches
from dist_train.runtime.text import first_line, shown
from dist_train.runtime.written import written_output

FORMAT_VERSION = 1
KINDS = ("outlier", "merge", "duplicate", "test")
_METADATA_KEY = b"headcount"
_MOST_EXCEPT_BYTES = 64 << 20
_BATCH_ROWS = 1 << 16
_LONGEST = 2  # list of a finding: two pictures, two labels

SCHEMA = pa.schema(
    [
        pa.field("number", pa.int64(), nullable=False),  # of the finding
        pa.field("kind", pa.string(), nullable=False),
        pa.field("rows", pa.list_(pa.int64()), nullable=False),  # pictures, in the set's order; the first is left out
        pa.field("keys", pa.list_(pa.string()), nullable=False),  # of these pictures
        pa.field("labels", pa.list_(pa.int64()), nullable=False),  # of these; of a merge: the one that goes, and stays
        pa.field("names", pa.list_(pa.string()), nullable=False),  # of these labels
        pa.field("cosine", pa.float32()),  # to its own identity's others; between the centres; between the pictures
        pa.field("near_label", pa.int64()),  # nearest other identity of an outlier
        pa.field("near_name", pa.string()),
        pa.field("near_cosine", pa.float32()),
        pa.field("likeness", pa.float32()),  # correlation of the pixels
        pa.field("score", pa.float32(), nullable=False),  # what the threshold is for
        pa.field("certainty", pa.float32()),  # cautious share of right ones among those at least as sure
        pa.field("evidence", pa.string(), nullable=False),  # a sentence for people
    ]
)

ASKED = ["kind", "rows", "labels"]
"""The columns that say what is to be done."""


@dataclass(frozen=True)
class Finding:
    """One fault of a set; the fields are the columns of `SCHEMA`, which says what they are."""

    kind: str
    rows: list[int]
    keys: list[str]
    labels: list[int]
    names: list[str]
    cosine: float
    score: float
    evidence: str
    near_label: int | None = None
    near_name: str | None = None
    near_cosine: float | None = None
    likeness: float | None = None
    certainty: float | None = None


@dataclass(frozen=True)
class Findings:
    """A table of findings.

    Attributes:
        table: with the columns of `SCHEMA`; of a file, with those of `ASKED`.
        about: the set's digest, what found them and by which thresholds, as JSON values.
    """

    table: pa.Table
    about: dict[str, Any]

    @property
    def digest(self) -> str:
        """Hexadecimal identity of what was found, by which a list of exceptions belongs to it."""
        hashed = hashlib.sha256(self.about["set"]["digest"].encode())
        for batch in self.table.select(ASKED).to_batches(max_chunksize=_BATCH_ROWS):
            hashed.update(json.dumps(batch.to_pylist()).encode())
        return hashed.hexdigest()


def tabled(findings: Sequence[Finding], about: dict[str, Any]) -> Findings:
    """The table of findings, in their order."""
    columns = [each for each in SCHEMA.names if each != "number"]
    bodies = [asdict(each) for each in findings]
    arrays = [pa.array([body[name] for body in bodies], SCHEMA.field(name).type) for name in columns]
    return Findings(pa.table([pa.array(range(len(bodies)), pa.int64()), *arrays], schema=SCHEMA), about)


def write_findings(path: Path, findings: Findings) -> None:
    """Write the table, by rename.

    Raises:
        WorkError: the disk refuses.
    """
    schema = SCHEMA.with_metadata({_METADATA_KEY: json.dumps({"version": FORMAT_VERSION, **findings.about})})
    with written_output(path) as file, pq.ParquetWriter(file, schema) as writer:
        for batch in findings.table.to_batches(max_chunksize=_BATCH_ROWS):
            writer.write_batch(pa.RecordBatch.from_arrays(batch.columns, schema=schema))


def read_findings(path: Path, digest: str, samples: int, classes: int) -> Findings:
    """The findings at `path`, said of the set with this digest: what they ask for, not what is told of them.

    Args:
        path: of the table.
        digest: of the set's manifest.
        samples: of the set; rows are below.
        classes: of the set; labels are below.

    Raises:
        UserError: missing, damaged, of another set, or with rows or labels that the set does not have.
    """
    way_out = "make it again with `headcount data clean SET --model RUN`"
    try:
        metadata = pq.read_metadata(path)
        schema = metadata.schema.to_arrow_schema()
        about = json.loads((schema.metadata or {})[_METADATA_KEY])
        said_of, version = str(about["set"]["digest"]), about["version"]
        if version != FORMAT_VERSION:
            raise UserError(f"findings {path}: version {version!r}, expected {FORMAT_VERSION}; {way_out}")
        if said_of != digest:
            raise UserError(
                f"findings {path}: are of another set: digest {said_of[:12]}, the set has {digest[:12]}; give the "
                "set that they were made of, or find them again"
            )
        most = 3 * samples + 8 * classes
        if (count := metadata.num_rows) > most:  # before it is unpacked
            raise UserError(f"findings {path}: {count:,} rows, a set of {samples:,} pictures has at most {most:,}")
        if not schema.equals(SCHEMA):
            raise UserError(f"findings {path}: columns or types other than those that are written; {way_out}")
        asked = pa.schema([SCHEMA.field(name) for name in ASKED])
        table = pa.Table.from_batches([batch.cast(asked) for batch in bounded_batches(path, ASKED, _LONGEST)], asked)
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"findings {path}: no such file; {way_out}") from error
    except KeyError as error:
        raise UserError(f"findings {path}: not written by `headcount data clean`; {way_out}") from error
    except (OSError, ValueError, TypeError, RecursionError, pa.ArrowException) as error:
        raise UserError(f"findings {path}: cannot be read: {first_line(error)}; {way_out}") from error
    for number, (kind, rows, labels) in enumerate(
        zip(*(table[name].to_pylist() for name in ("kind", "rows", "labels")), strict=True)
    ):
        if wrong := _fault(kind, rows, labels, samples, classes):
            raise UserError(f"findings {path}, row {number}: {wrong}; {way_out}")
    return Findings(table, about)


def _fault(kind: str, rows: list[int | None], labels: list[int | None], samples: int, classes: int) -> str:
    if kind not in KINDS:
        return f"kind {shown(kind)}, expected one of {', '.join(KINDS)}"
    counts = {"outlier": (1, 1), "merge": (0, 2), "duplicate": (2, 2), "test": (1, 1)}
    if (len(rows), len(labels)) != counts[kind]:
        return f"{len(rows)} pictures and {len(labels)} labels, a finding of kind {kind} has {counts[kind]}"
    if not all(row is not None and 0 <= row < samples for row in rows):
        return f"a picture that the set of {samples} does not have"
    if not all(label is not None and 0 <= label < classes for label in labels):
        return f"a label that the set of {classes} identities does not have"
    return ""


def read_exceptions(path: Path, findings: Findings) -> frozenset[int]:
    """Numbers of the findings that somebody struck out on the sheet, from the file that it saves.

    Raises:
        UserError: missing, damaged, of other findings, or a number that there is not.
    """
    way_out = "save it again from the sheet beside the findings"
    try:
        body = json.loads(read_bounded(path, _MOST_EXCEPT_BYTES))
        said_of, numbers = body["findings"], body["except"]
        if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
            raise TypeError("`except` is no list of numbers")
    except FileNotFoundError as error:
        raise UserError(f"--except {path}: no such file; {way_out}") from error
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"--except {path}: cannot be read: {first_line(error)}; {way_out}") from error
    if said_of != findings.digest:
        raise UserError(f"--except {path}: is a list for other findings; {way_out}")
    count = findings.table.num_rows
    if outside := [number for number in numbers if not 0 <= number < count]:
        raise UserError(f"--except {path}: finding {outside[0]}, there are {count}; {way_out}")
    return frozenset(numbers)
