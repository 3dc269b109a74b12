"""A job's own files beside its output: the list of inputs, and the parts that are done.

    OUT.parts/inputs.arrow        the source's list, one batch a part
    OUT.parts/job.json            the description; its presence means that the list is complete
    OUT.parts/000007.csv          inputs of part 7 without an embedding
    OUT.parts/000007.parquet      embeddings of part 7; its presence means that the part is complete
    OUT.parts/whole.*             the files of the output while they are put together

Every file appears by rename, so a job that was stopped anywhere goes on with the first part that is not there.
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from dist_train.data.reject import Reject, counted
from dist_train.embed.pictures import PictureSource, Place
from dist_train.embed.table import (
    NAMES,
    as_array,
    embedding_schema,
    names_path,
    rejects_path,
    with_description,
    write_array,
)
from dist_train.errors import UserError, WorkError
from dist_train.runtime.text import kind_and_line, shown_name
from dist_train.runtime.written import MAKE_ROOM, write_failures, written_output

REJECTS = pa.schema([("path", pa.string()), ("reason", pa.string()), ("detail", pa.string())])
_CSV: dict[str, Any] = {
    "parse_options": pa_csv.ParseOptions(newlines_in_values=True),
    "convert_options": pa_csv.ConvertOptions(column_types=REJECTS, strings_can_be_null=False),
}
EXAMPLES = 3  # inputs without an embedding that are told of in full
_JOB = "job.json"
_INPUTS = "inputs.arrow"
_GROUP_ROWS = 1 << 14  # rows of a row group of the output, and those held while it is put together


class LeftOut(NamedTuple):
    """The inputs without an embedding.

    Attributes:
        reasons: how many there are, by reason.
        examples: the first of them with reason and detail, each on one line.
    """

    reasons: Counter[str]
    examples: list[str]


class Parts:
    """The parts of a job.

    Attributes:
        out: the output.
        home: directory of the job's own files.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.home = out.with_name(f"{out.name}.parts")

    @property
    def description(self) -> dict[str, Any] | None:
        """What the job was begun with; None where no job was begun."""
        try:
            body: dict[str, Any] = json.loads((self.home / _JOB).read_text(encoding="utf-8"))
            if not isinstance(body, dict) or not isinstance(body.get("model"), dict):
                raise ValueError("no description of a job")
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self.home / _JOB}: not JSON ({error}); remove {self.home} and start again") from error
        return body

    def begin(self, description: dict[str, Any], source: PictureSource, part_rows: int) -> None:
        """List the inputs in parts of `part_rows`, then store the description.

        Raises:
            UserError: nothing in the source.
        """
        count = 0
        with written_output(self.home / _INPUTS) as file:
            writer = None
            for batch in _regrouped(source.batches(), part_rows):
                writer = writer or pa.ipc.new_file(file, batch.schema)
                writer.write_batch(batch)
                count += batch.num_rows
            if writer is None:
                raise UserError(f"{source.described()['path']}: nothing in it to embed")
            writer.close()
        with written_output(self.home / _JOB) as file:
            file.write(json.dumps(description, indent=1).encode())

    def open(self) -> None:
        """Open the list of inputs.

        Raises:
            WorkError: it is not there, as on a machine that does not share the disk.
        """
        try:
            self._inputs = pa.ipc.open_file(pa.memory_map(str(self.home / _INPUTS)))
            for part in range(len(self)):  # a damaged list would end the process when it is read
                self._inputs.get_batch(part).validate(full=True)
        except (OSError, pa.ArrowInvalid) as error:
            raise WorkError(f"{self.home / _INPUTS}: {error}; all ranks must see the same disk") from error

    def __len__(self) -> int:
        return int(self._inputs.num_record_batches)

    def inputs(self, part: int) -> pa.RecordBatch:
        """The listed inputs of a part."""
        return self._inputs.get_batch(part)

    def done(self, part: int) -> bool:
        """Whether a part is complete."""
        return self._embeddings(part).exists()

    def undone(self) -> list[int]:
        """Parts that are not complete."""
        return [part for part in range(len(self)) if not self.done(part)]

    def left_out(self) -> LeftOut:
        """Inputs without an embedding, as listed beside a finished output."""
        found = LeftOut(Counter(), [])
        listed = rejects_path(self.out)
        if listed.exists():
            with _reading(listed, listed), pa_csv.open_csv(listed, **_CSV) as batches:
                for batch in batches:
                    if len(found.examples) < EXAMPLES:
                        found.examples.extend(map(_as_line, batch.slice(0, EXAMPLES).to_pylist()))
                    found.reasons.update(batch["reason"].to_pylist())
        del found.examples[EXAMPLES:]
        return found

    def commit(self, part: int, rows: pa.Table, rejects: Sequence[tuple[Place, Reject]]) -> None:
        """Store what became of a part's inputs.

        Raises:
            WorkError: the disk failed.
        """
        listed = [[place.path, *rejected] for place, rejected in rejects]
        columns = list(zip(*listed, strict=True)) or [(), (), ()]
        with written_output(self._rejects(part)) as file:
            pa_csv.write_csv(pa.table([pa.array(c, pa.string()) for c in columns], schema=REJECTS), file)
        with written_output(self._embeddings(part)) as file:
            pq.write_table(rows, file, use_dictionary=["identity"])

    def join(self) -> tuple[int, LeftOut]:
        """Write the output out of all parts, and remove these.

        Returns:
            The number of embeddings, and the inputs without one.

        Raises:
            WorkError: the disk failed, or no input has an embedding.
        """
        count = 0
        for part in range(len(self)):
            with self._reading_part(part):
                count += pq.read_metadata(self._embeddings(part)).num_rows
        self._join_rejects()
        left_out = self.left_out()
        if not count:
            reasons, example = left_out.reasons, "".join(f", e.g. {line}" for line in left_out.examples[:1])
            self.remove()
            raise WorkError(
                f"none of {reasons.total():,} inputs gave an embedding ({counted(reasons)}){example}; all are in "
                f"{rejects_path(self.out)}"
            )
        description = self.description or {}
        with self._reading_part(0):
            schema = embedding_schema(pq.read_schema(self._embeddings(0)).field("embedding").type.list_size)
        width = schema.field("embedding").type.list_size
        as_npy = self.out.suffix == ".npy"
        if as_npy:
            with self._whole(self.out) as file:
                parts = (as_array(table["embedding"]) for table in self._tables())
                write_array(file, parts, (count, width))
        with self._whole(names_path(self.out)) as file:
            schema = with_description(NAMES if as_npy else schema, description)
            with pq.ParquetWriter(file, schema, use_dictionary=["identity"]) as writer:
                for table in self._tables():
                    writer.write_table(table.select(schema.names).cast(schema))
        self.remove()
        return count, left_out

    def remove(self) -> None:
        """Remove the job's own files; the mark that there is a job goes first."""
        (self.home / _JOB).unlink(missing_ok=True)
        shutil.rmtree(self.home, ignore_errors=True)

    def _tables(self) -> Iterator[pa.Table]:
        held: list[pa.Table] = []
        for part in range(len(self)):
            with self._reading_part(part):
                table = pq.read_table(self._embeddings(part))
                held.append(table.cast(embedding_schema(table.schema.field("embedding").type.list_size)))
            if sum(table.num_rows for table in held) >= _GROUP_ROWS:
                yield pa.concat_tables(held)
                held = []
        if held:
            yield pa.concat_tables(held)

    def _join_rejects(self) -> None:
        with self._whole(rejects_path(self.out)) as file, pa_csv.CSVWriter(file, REJECTS) as writer:
            for part in range(len(self)):
                with self._reading_part(part):
                    table = pa_csv.read_csv(self._rejects(part), **_CSV).select(REJECTS.names).cast(REJECTS)
                writer.write_table(table)

    @contextmanager
    def _whole(self, path: Path) -> Iterator[IO[bytes]]:
        """A file of the output to write. Until it is complete it lies here, where no kill leaves it for ever.

        Raises:
            WorkError: the disk refuses.
        """
        whole = self.home / f"whole{path.suffix}"
        with written_output(whole) as file:
            yield file
        with write_failures(str(path), MAKE_ROOM):
            whole.replace(path)

    def _reading_part(self, part: int) -> AbstractContextManager[None]:
        return _reading(self.home / f"{part:06d}", self._embeddings(part))

    def _embeddings(self, part: int) -> Path:
        return self.home / f"{part:06d}.parquet"

    def _rejects(self, part: int) -> Path:
        return self.home / f"{part:06d}.csv"


def _as_line(row: dict[str, str]) -> str:
    return ": ".join(shown_name(row[name]) for name in REJECTS.names)


@contextmanager
def _reading(path: Path, mark: Path) -> Iterator[None]:
    """Around the reading of files that this job wrote earlier; without `mark` it makes them anew."""
    try:
        yield
    except (OSError, ValueError, AttributeError, LookupError, pa.ArrowException) as error:
        reason = kind_and_line(error)
        raise WorkError(f"{path}: damaged: {reason}; remove {mark} and run the same command again") from error


def _regrouped(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of `rows`; the last may be smaller."""
    held: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        held.append(batch)
        count += batch.num_rows
        if count >= rows:
            table = pa.Table.from_batches(held)
            whole = count // rows * rows
            yield from table.slice(0, whole).combine_chunks().to_batches(max_chunksize=rows)
            held, count = table.slice(whole).to_batches(), count - whole
    if count:
        yield from pa.Table.from_batches(held).combine_chunks().to_batches()
