"""Why an input is left out: out of a set, or out of embeddings."""

from collections import Counter
from typing import NamedTuple

REJECTS_NAME = "rejects.parquet"
"""The file in a set that lists its inputs without a picture."""
STORAGE_REASONS = frozenset({"vanished", "unreadable", "unreachable"})
"""Reasons that say that the storage failed, not the input. Work with nothing else in it has lost its storage."""


class Reject(NamedTuple):
    """An input that is left out.

    Attributes:
        reason: out of few, for counting.
        detail: what is wrong with this one.
    """

    reason: str
    detail: str


def counted(reasons: Counter[str]) -> str:
    """Reasons with their counts, the most frequent first."""
    return ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
