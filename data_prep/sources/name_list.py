"""Lists of identities in text files, which restrict a job to some people of a source.

Either one name a line, or a people file of LFW: each name followed by a tab and the number of its photos, and the
number of names before them (`peopleDevTrain.txt`), in folds behind the number of folds (`people.txt`).
"""

import hashlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from dist_train.data.text_file import read_bytes, read_text
from dist_train.errors import UserError
from dist_train.runtime.text import shown
from dist_train.section import Section

logger = logging.getLogger(__name__)

_SHOWN = 5  # most names in a message
_COUNT = re.compile("[0-9]{1,9}")


class NameList(Section):
    """A list as a plan stores it; the digest tells whether the file has changed since.

    Attributes:
        path: path of the file.
        sha256: digest of its bytes.
    """

    path: Path
    sha256: str


def open_name_list(path: Path) -> NameList:
    """The list at `path`.

    Raises:
        UserError: the file is missing, empty or not UTF-8, or the counts of a people file disagree with its names.
    """
    names = read_names(path)
    logger.info("%s: %s identities", path, f"{len(names):,}")
    return NameList(path=path.absolute(), sha256=hashlib.sha256(read_bytes(path)).hexdigest())


def read_names(path: Path) -> list[str]:
    """The names in a list, in its order, each once.

    Raises:
        UserError: as `open_name_list`.
    """
    lines = [(number, line.strip()) for number, line in enumerate(read_text(path).split("\n"), 1) if line.strip()]
    people = any("\t" in line for _, line in lines)
    names = _people(path, lines) if people else [line for _, line in lines]
    if not names:
        raise UserError(f"{path}: no name in it; expected a name a line, or a people file of LFW")
    return list(dict.fromkeys(names))


def select(batches: Iterator[pa.RecordBatch], chosen: NameList) -> Iterator[pa.RecordBatch]:
    """The rows of a listing whose identity is in the list; the log names counts and the people who were not found.

    Raises:
        UserError: no row is left, or the source lists its photos without identities.
    """
    names = read_names(chosen.path)
    wanted = pa.array(names, pa.string())
    seen = taken = named = 0
    found: set[str] = set()
    for batch in batches:
        identities = batch.column("identity")
        here = batch.filter(pc.is_in(identities, value_set=wanted))
        seen, taken = seen + batch.num_rows, taken + here.num_rows
        named += batch.num_rows - identities.null_count
        found.update(pc.unique(here.column("identity")).to_pylist())
        if here.num_rows:
            yield here
    if seen and not named:
        raise UserError(
            f"{chosen.path}: the source tells whom a photo shows only when it is read (a .rec), so a list cannot "
            "choose among its photos; use a folder of identities, a tar or a table"
        )
    if not taken:
        raise UserError(
            f"{chosen.path}: none of its {len(names):,} names is an identity of the source, e.g. {shown(names[0])}"
        )
    logger.info("%s: %s of %s photos are of the listed identities", chosen.path, f"{taken:,}", f"{seen:,}")
    if missing := [name for name in names if name not in found]:
        told = ", ".join(map(shown, missing[:_SHOWN])) + (", ..." if len(missing) > _SHOWN else "")
        logger.warning(
            "%s: %s of %s names have no photo: %s", chosen.path, f"{len(missing):,}", f"{len(names):,}", told
        )


def _people(path: Path, lines: list[tuple[int, str]]) -> list[str]:
    names, counts = [], []
    for number, line in lines:
        name, *more = line.split("\t")
        if not more and _COUNT.fullmatch(name):
            counts.append(int(name))
        elif len(more) == 1 and name and _COUNT.fullmatch(more[0]):
            names.append(name)
        else:
            raise UserError(f"{path}: line {number}: {shown(line)}; expected a name, a tab and its number of photos")
    if len(counts) > 1:
        folds, *counts = counts
        if folds != len(counts):
            raise UserError(f"{path}: its first line says {folds} folds, it has {len(counts)}; the file is cut off")
    if counts and sum(counts) != len(names):
        raise UserError(f"{path}: its head says {sum(counts)} names, it lists {len(names)}; the file is cut off")
    return names
