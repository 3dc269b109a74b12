"""The base of every section of a recipe and of every stored description."""

import re
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict

_DIGEST = re.compile("[0-9a-f]{64}")
_MOST_CHARACTERS = 300


class Section(BaseModel):
    """Values from a file or a caller: numbers are finite, unknown keys are errors, nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def section_of(annotation: object) -> type[BaseModel] | None:
    """The class of the section that a field of this type takes, also where null or a list of them is meant."""
    kinds = (annotation, *get_args(annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def first_difference(old: dict[str, Any], new: dict[str, Any], *, cut_digests: bool = False, prefix: str = "") -> str:
    """The first entry in which two stored descriptions differ, as `NAME was OLD, is NEW`; empty if none.

    Args:
        old: as stored.
        new: as wanted.
        cut_digests: show the beginning of a SHA-256 alone.
        prefix: of the name.
    """
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            if found := first_difference(before, after, cut_digests=cut_digests, prefix=f"{prefix}{key}."):
                return found
        elif before != after:
            return f"{prefix}{key} was {_short(before, cut_digests)}, is {_short(after, cut_digests)}"
    return ""


def _short(value: object, cut_digests: bool) -> str:
    text = repr(value)
    is_digest = isinstance(value, str) and _DIGEST.fullmatch(value) is not None
    most = 20 if cut_digests and is_digest else _MOST_CHARACTERS
    return text if len(text) <= most else f"{text[:most]}..."
