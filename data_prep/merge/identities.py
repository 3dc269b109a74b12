"""Identities of several sets become those of one: a label in each set to a label in the new one.

The first set keeps its labels and names. Identities of a further set that no set before it has follow in the order of
their labels. Names are compared in Unicode's normal form C, since two forms of a letter look alike and one person's
name may come in both: folders made on macOS have form D. The form that came first is kept.
"""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.merge.sameness import Sameness
from data_prep.merge.sources import MergeSource
from dist_train.data.counters import Ints
from dist_train.data.manifest import IDENTITIES_NAME, MAX_CLASSES
from dist_train.errors import UserError

logger = logging.getLogger(__name__)

_MOST_BYTES = (1 << 31) - 1  # of text in an Arrow array
_MOST_SHOWN = 80  # characters of a name in a message


class Joined(NamedTuple):
    """The identities of the new set.

    Attributes:
        names: by label [classes].
        labels: for each set, the new label of each of its own [its classes].
        met: for each set, how many of its names were there before: joined, or given the set's name in front.
    """

    names: pa.Array
    labels: list[Ints]
    met: list[int]


def join_identities(sources: Sequence[MergeSource], sameness: Sameness) -> Joined:
    """Give every identity of every set its label.

    Raises:
        UserError: identities without a name that are to be joined by it, two of one name in a set, or too many.
    """
    names = pa.array([], pa.string())
    known = names  # in normal form
    labels, met = [], []
    for source in sources:
        own = _named(source, sameness)
        forms = pc.utf8_normalize(own, "NFC")
        _refuse_twice(source, own, forms)
        at = pc.index_in(forms, value_set=known)
        is_new = at.is_null().to_numpy(zero_copy_only=False)
        met.append(int((~is_new).sum()))
        if sameness is Sameness.DISTINCT:
            own, forms = _told_apart(source, own, forms, is_new, known)
            is_new[:] = True
        else:
            _warn_of_numbers(source, own, is_new)
        new = np.where(is_new, len(names) + np.cumsum(is_new) - 1, at.fill_null(-1).to_numpy())
        labels.append(new.astype(np.int64))
        if len(names) + is_new.sum() > MAX_CLASSES or names.nbytes + own.nbytes > _MOST_BYTES:
            raise UserError(
                f"the sets have more than {MAX_CLASSES:,} identities together, or than {_MOST_BYTES:,} bytes of names; "
                "merge fewer"
            )
        kept = pa.array(is_new)
        names = pa.concat_arrays([names, own.filter(kept)])
        known = pa.concat_arrays([known, forms.filter(kept)])
    return Joined(names, labels, met)


def _named(source: MergeSource, sameness: Sameness) -> pa.Array:
    """Names of a set's identities; one without a name is named by its label."""
    if not source.names.null_count:
        return source.names
    if sameness is Sameness.SAME_NAME:
        found = f"{source.names.null_count} of {len(source.names)} identities have no name in {IDENTITIES_NAME}"
        raise UserError(
            f"{source.path}: {found}, so none can be found by name; use --identities distinct, or make the set with "
            "`headcount prep align`"
        )
    return pc.coalesce(source.names, pc.cast(pa.array(np.arange(len(source.names))), pa.string()))


def _refuse_twice(source: MergeSource, own: pa.Array, forms: pa.Array) -> None:
    counts = pc.value_counts(forms)
    twice = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    if not len(twice):
        return
    one, other = np.flatnonzero(pc.equal(forms, twice[0]).to_numpy(zero_copy_only=False))[:2].tolist()
    told = [f"label {label}, {_shown(own[label].as_py())}" for label in (one, other)]
    raise UserError(
        f"{source.path / IDENTITIES_NAME}: two identities of one name: {told[0]}, and {told[1]} (such names: "
        f"{len(twice)}). Give each identity a name of its own, or one label, and write the set again"
    )


def _told_apart(
    source: MergeSource, own: pa.Array, forms: pa.Array, is_new: np.ndarray, known: pa.Array
) -> tuple[pa.Array, pa.Array]:
    """Names of a set and their normal forms, where those that were there before begin with the set's name."""
    prefixed = pc.binary_join_element_wise(pa.scalar(source.name), own, "/")
    own = pc.if_else(pa.array(is_new), own, prefixed)
    forms = pc.if_else(pa.array(is_new), forms, pc.utf8_normalize(prefixed, "NFC"))
    taken = pc.is_in(forms, value_set=known).to_numpy(zero_copy_only=False)
    if taken.any() or len(forms.unique()) < len(forms):
        example = own[int(taken.argmax())] if taken.any() else own[int((~is_new).argmax())]
        raise UserError(
            f"{source.path}: a name of it was there before, and so was {_shown(example.as_py())}, with the set's name "
            "in front; rename the set's directory"
        )
    return own, forms


def _warn_of_numbers(source: MergeSource, own: pa.Array, is_new: np.ndarray) -> None:
    """Numbers are seldom names: those of a `.rec` count its own people."""
    joined = own.filter(pa.array(~is_new))
    if len(joined) and pc.all(pc.utf8_is_digit(joined)).as_py():
        logger.warning(
            "%s: the %d names that an earlier set has, too, are numbers, e.g. %s: if these number other people there, "
            "as in sets from a .rec, use --identities distinct",
            source.path, len(joined), _shown(joined[0].as_py()),
        )  # fmt: skip


def _shown(name: str) -> str:
    """A name for a message, in ASCII: forms of one letter look alike otherwise."""
    return ascii(name[:_MOST_SHOWN]) + ("..." if len(name) > _MOST_SHOWN else "")
