"""Which class of an old head a class of a new one is: the one of the same name."""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dist_train.errors import UserError
from dist_train.runtime.text import shown

Ints = NDArray[np.int64]


class Names(NamedTuple):
    """The names of a head's classes.

    Attributes:
        table: label and name of those that have one.
        classes: of the head.
        where: the table is from, for messages.
        way_out: what to do about a name that is there twice.
    """

    table: pa.Table
    classes: int
    where: str
    way_out: str


class Join(NamedTuple):
    """Classes by name.

    Attributes:
        old: [C] int64, for each new class the old one of its name; -1 where there is none.
        carried: classes that have one.
        new: classes that have none.
        gone: old classes that no new one has the name of.
    """

    old: Ints
    carried: int
    new: int
    gone: int


def join_by_name(old: Names, new: Names) -> Join:
    """For each class of `new` the class of `old` that has its name.

    The names stay in Arrow's memory, without a Python object each: 100 million take some 10 GB.

    Args:
        old: of the head that rows come from.
        new: of the head that they go to.

    Raises:
        UserError: two identities of one have a name that the other has, too, so that nobody knows which is meant.
    """
    names, others = (each.table["name"].cast(pa.large_string()) for each in (new, old))  # a string's index ends at 2 GB
    there, here = _places(names, others), _places(others, names)
    met = there >= 0
    carried = len(np.unique(there[met]))
    for each, place in ((old, here), (new, there)):
        if np.count_nonzero(place >= 0) != carried:
            raise _twice(each, np.flatnonzero(place >= 0))
    found = np.full(new.classes, -1, dtype=np.int64)
    found[new.table["label"].to_numpy()[met]] = old.table["label"].to_numpy()[there[met]]
    return Join(found, carried, new.classes - carried, old.classes - carried)


def _places(names: pa.ChunkedArray, others: pa.ChunkedArray) -> NDArray[np.int32]:
    """For each of `names` [n] the first place of the same among `others`; -1 where there is none."""
    found: NDArray[np.int32] = pc.fill_null(pc.index_in(names, value_set=others), -1).to_numpy()
    return found


def _twice(names: Names, rows: Ints) -> UserError:
    """Which name stands in several of the rows."""
    table = names.table.take(pa.array(rows))
    counts = pc.value_counts(table["name"])
    repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    labels = table["label"].filter(pc.equal(table["name"], repeated[0]))[:2].to_pylist()
    return UserError(
        f"{names.where}: labels {labels[0]} and {labels[1]} are both named {shown(repeated[0].as_py())}, of "
        f"{len(repeated)} names that are there more than once; rows are carried by name, so a name may be there once; "
        f"{names.way_out}"
    )
