"""What placed the faces of a set's pictures; sets that go together have one, and a network's photos need it too."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from dist_train.errors import UserError
from dist_train.runtime.text import shown_start

logger = logging.getLogger(__name__)

ALIGNER_KEY = "aligner"
"""What headers and metadata of exported files call it."""
UNKNOWN = "unknown"
_MOST_NAME = 100
_TEXT = re.compile(rf"([0-9a-f]{{64}}) ([^\x00-\x1f\x7f]{{1,{_MOST_NAME}}})")
_SHOWN_DIGITS = 12


@dataclass(frozen=True, slots=True)
class Aligner:
    """A finder of faces, and how crops follow what it finds.

    Attributes:
        name: of its kind, e.g. `mtcnn`, or `landmarks` of a table; where crops follow boxes, `mtcnn box 0.1` with their
            margin.
        sha256: hexadecimal digest of its weights, or of the table that landmarks are from.
    """

    name: Annotated[str, Field(min_length=1, max_length=_MOST_NAME)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

    def __str__(self) -> str:
        return f"{shown_start(self.name)} ({self.sha256[:_SHOWN_DIGITS]})"

    @property
    def by_table(self) -> bool:
        """Whether faces are where a table of landmarks says, and not where a detector finds them."""
        return self.name.partition(" ")[0] == "landmarks"

    @property
    def by_box(self) -> bool:
        """Whether crops follow boxes, and not the five points."""
        return " box " in self.name

    def to_text(self) -> str:
        """Its entry in the metadata of a file."""
        return f"{self.sha256} {self.name}"

    @classmethod
    def of_text(cls, text: str) -> "Aligner | None":
        """The aligner in an entry of a file's metadata; None where there is none, or something else."""
        found = _TEXT.fullmatch(text)
        return cls(found[2], found[1]) if found else None


def common_aligner(sets: Mapping[str, Aligner | None], way_out: str, accept: bool) -> Aligner | None:
    """The aligner of sets that become one; None where it is not known of all, or several are accepted.

    Args:
        sets: the aligner of each, by its name for messages; None: unknown.
        way_out: how to accept several, for the message.
        accept: whether that was done.

    Raises:
        UserError: two are known and differ.
    """
    known = {name: each for name, each in sets.items() if each is not None}
    if not known:
        return None
    first, aligner = next(iter(known.items()))
    for name, other in known.items():
        if other == aligner:
            continue
        told = f"{first} was aligned by {aligner}, {name} by {other}"
        if not accept:
            same = ", which is right where one detector made both tables" if aligner.by_table and other.by_table else ""
            raise UserError(
                f"{told}: a network would learn both places of a face; align the photos of one of them again as those "
                f"of the other are, or accept it{same}: {way_out}"
            )
        logger.warning("%s", told)
        return None
    return aligner if len(known) == len(sets) else None


def warn_of_aligner(trained: Aligner, name: str, found: Aligner | None) -> None:
    """Log if a set was aligned by another than the one of the set that a network was trained on; None: unknown."""
    if found not in (None, trained):
        logger.warning(
            "set %s was aligned by %s, the model was trained on faces aligned by %s: its figures may be lower than on "
            "photos that are aligned as for its training", name, found, trained,
        )  # fmt: skip
