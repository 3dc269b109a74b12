"""Which class of an old head a class of a new one is: the one of the same name."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dist_train.errors import UserError
from dist_train.runtime.text import shown


class Join(NamedTuple):
    """Classes by name.

    Attributes:
        old: [C] int64, for each new class the old one of its name; -1 where there is none.
        carried: classes that have one.
        new: classes that have none.
        gone: old classes that no new one has the name of.
    """

    old: NDArray[np.int64]
    carried: int
    new: int
    gone: int


def join_by_name(old: pa.Table, old_classes: int, new: pa.Table, new_classes: int) -> Join:
    """Join two tables of label and name, each name once; labels without a name are of no use, but count.

    The names stay in Arrow's memory, without a Python object each.

    Args:
        old: of the head that rows come from.
        old_classes: its classes.
        new: of the head that they go to.
        new_classes: its classes, C.
    """
    names = (table["name"].cast(pa.large_string()) for table in (new, old))  # an index of strings ends at 2 GB
    place = pc.fill_null(pc.index_in(next(names), value_set=next(names)), -1).to_numpy()
    found = np.full(new_classes, -1, dtype=np.int64)
    known = place >= 0
    found[new["label"].to_numpy()[known]] = old["label"].to_numpy()[place[known]]
    carried = int(np.count_nonzero(known))
    return Join(found, carried, new_classes - carried, old_classes - carried)


def check_distinct(table: pa.Table, where: Path | str, way_out: str) -> None:
    """See that no two identities have one name.

    Args:
        table: label and name.
        where: it is from, for the message.
        way_out: what to do about it.

    Raises:
        UserError: two have; says which.
    """
    names = table["name"].cast(pa.large_string())
    if pc.count_distinct(names).as_py() == len(names):
        return
    counts = pc.value_counts(names)
    repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    labels = table["label"].filter(pc.equal(names, repeated[0]))[:2].to_pylist()
    raise UserError(
        f"{where}: labels {labels[0]} and {labels[1]} are both named {shown(repeated[0].as_py())}, of {len(repeated)} "
        f"names that are there more than once; rows are carried by name, so a name may be there once; {way_out}"
    )
