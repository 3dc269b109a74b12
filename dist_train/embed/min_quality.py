"""The least quality of a picture that is embedded or enters a gallery: norm of the embedding, or detector's score."""

import math
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dist_train.data.reject import Reject
from dist_train.errors import UserError

REASON = "low quality"
_KINDS = {"norm": "the length of the network's output", "score": "the detector's score"}


class MinQuality(NamedTuple):
    """A bound from below.

    Attributes:
        kind: `norm` or `score`.
        least: the lowest that is kept.
    """

    kind: str
    least: float

    def __str__(self) -> str:
        """As the option has it."""
        return f"{self.kind}:{self.least:g}"

    def refused(self, value: float | None) -> Reject | None:
        """Why a picture of this quality is left out; None if it is kept."""
        if value is None:
            return Reject(REASON, f"no {self.kind} is known, expected at least {self.least:g}")
        if not value >= self.least:  # nan too
            return Reject(REASON, f"{self.kind} {value:.4g}, expected at least {self.least:g}")
        return None

    def keeps(self, names: pa.RecordBatch) -> NDArray[np.bool_]:
        """Whether each row of a file of embeddings is kept, bool [n]; one of unknown quality is not."""
        values = names.column(self.kind).to_numpy(zero_copy_only=False)  # null is nan
        kept: NDArray[np.bool_] = values.astype(np.float64) >= self.least
        return kept


def parse_min_quality(text: str | None) -> MinQuality | None:
    """The bound that an option states, as `norm:18.5` or `score:0.95`.

    Raises:
        UserError: another form, or no finite number.
    """
    if text is None:
        return None
    kind, _, number = text.partition(":")
    try:
        least = float(number)
    except ValueError:
        least = math.nan
    if kind not in _KINDS or not math.isfinite(least):
        known = " or ".join(f"{kind}:NUMBER for {what}" for kind, what in _KINDS.items())
        raise UserError(f"--min-quality {text!r}: expected {known}")
    return MinQuality(kind, least)
