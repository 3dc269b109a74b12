"""Pictures of units that were made before: taken back out of their shards, and joined with what is made of them now.

The pictures of a complete job are in its shards alone; those of inputs that were left out are nowhere.
"""

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from data_prep.job.plan import JobFiles
from data_prep.job.unit_files import MADE, read_mark, read_statistics
from data_prep.job.work import LEFT_OUT, STATISTICS, counts_of, sample_key, write_table
from dist_train.data.tars import Entry, walk_tar
from dist_train.errors import UserError
from dist_train.runtime.written import write_json, written

UNREACHABLE = "unreachable"
_Row = dict[str, Any]  # of a unit's statistics
_Piece = tuple[Path | None, int, int]  # file, offset and bytes of a picture; of no file: zeros


def restore_part(layout: JobFiles, unit: int, labels: pa.Array) -> bool:
    """Write the pictures of a unit that was sealed before, from its shard; False where a wanted one is not there.

    Args:
        layout: files of the job.
        unit: number of the unit.
        labels: of its inputs; pictures of inputs that are left out become zeros, which nobody reads.
    """
    rows = read_statistics(layout.statistics(unit), ["position", "sizes", "extensions"], STATISTICS).to_pylist()
    pieces: list[_Piece] = []
    for label, row, found in zip(labels.to_pylist(), rows, _pieces(layout, unit, rows), strict=True):
        if label == LEFT_OUT:
            pieces += [(None, 0, size) for size in row["sizes"]]
        elif found is None:
            return False
        else:
            pieces += found
    _write_part(layout.restored(unit), pieces)
    return True


def join_unit(layout: JobFiles, again: JobFiles, unit: int, error: str = "") -> tuple[int, int]:
    """Give a unit that was done again what it had before and lost, in the files beside the old ones.

    Nothing that a set has goes out of it because an address is gone, or shows another photo now.

    Args:
        layout: files of the job, with the unit as it was.
        again: files of the units that are done again; the unit's part, statistics and mark are there afterwards.
        unit: number of the unit.
        error: why it could not be done again; all of its inputs then count as unreachable.

    Returns:
        Inputs that are not unreachable any more, and inputs whose old pictures were taken.
    """
    before = read_statistics(layout.statistics(unit), STATISTICS.names, STATISTICS).to_pylist()
    if error:
        nothing = {"digest": None, "reason": UNREACHABLE, "detail": error}
        after = [row | nothing | {name: [] for name, value in row.items() if isinstance(value, list)} for row in before]
        mark = read_mark(layout.done(unit), MADE)
    else:
        after = read_statistics(again.statistics(unit), STATISTICS.names, STATISTICS).to_pylist()
        mark = read_mark(again.done(unit), MADE)
    olds = _pieces(layout, unit, before)
    anew = [_counts_anew(*each) for each in zip(before, after, olds, strict=True)]
    if error or not all(anew):
        rows = [new if now else old for old, new, now in zip(before, after, anew, strict=True)]
        pieces: list[_Piece] = []
        for old, new, now in zip(olds, _in_part(again.part(unit), after), anew, strict=True):
            pieces += new if now else old or []
        _write_part(again.part(unit), pieces)
        write_table(pa.Table.from_pylist(rows, schema=STATISTICS), again.statistics(unit))
        write_json(again.done(unit), mark | counts_of([r["reason"] for r in rows], [r["sizes"] for r in rows]))
    gained = sum(old["reason"] == UNREACHABLE != new["reason"] for old, new in zip(before, after, strict=True))
    return gained, sum(not now and old["reason"] is None for old, now in zip(before, anew, strict=True))


def _counts_anew(before: _Row, after: _Row, old: list[_Piece] | None) -> bool:
    """Whether of an input's two outcomes the new one counts; `old`: its old pictures, None where they are nowhere."""
    if before["reason"] is not None:
        return before["reason"] == UNREACHABLE or after["digest"] is not None
    if old is None:
        return True
    # Of the same photo the new one, so that a unit that lost nothing is the one that it would have been, to the byte.
    return after["reason"] is None and after["digest"] == before["digest"]


def _pieces(layout: JobFiles, unit: int, rows: list[_Row]) -> list[list[_Piece] | None]:
    """Where the pictures of each row of a unit are: in its part, or else in its shard; None: not all are there."""
    if layout.part(unit).exists():
        return list(_in_part(layout.part(unit), rows))
    shard = layout.shard(unit)
    # By its own headers: where a job was killed between the two renames, the index beside a shard is that of another.
    try:
        members = {found.name: found for found in walk_tar(shard) if isinstance(found, Entry)}
    except UserError:  # it is not there, or not a tar
        members = {}
    pieces: list[list[_Piece] | None] = []
    for row in rows:
        sizes = row["sizes"]
        names = [f"{sample_key(row['position'], n, len(sizes))}.{kind}" for n, kind in enumerate(row["extensions"])]
        found = [members.get(name) for name in names]
        here: list[_Piece] = [(shard, member.offset, member.size) for member in found if member is not None]
        pieces.append(here if [size for _, _, size in here] == sizes else None)
    return pieces


def _in_part(part: Path, rows: list[_Row]) -> Iterable[list[_Piece]]:
    """Where in a unit's part the pictures of each row are."""
    at = 0
    for row in rows:
        pieces: list[_Piece] = []
        for size in row["sizes"]:
            pieces.append((part, at, size))
            at += size
        yield pieces


def _write_part(target: Path, pieces: Iterable[_Piece]) -> None:
    """Write pictures one after the other; the target may be one of the files that they are in."""
    files: dict[Path, IO[bytes]] = {}
    with ExitStack() as opened:
        part = opened.enter_context(written(target))
        for path, offset, size in pieces:
            if path is None:
                part.write(bytes(size))
                continue
            if path not in files:
                files[path] = opened.enter_context(path.open("rb"))
            files[path].seek(offset)
            part.write(files[path].read(size))
