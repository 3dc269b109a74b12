"""The `start` section of a configuration."""

import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from dist_train.section import Section

_PART = re.compile(r"backbone|stem|stages\.[1-9][0-9]*|norms|head")


class StartConfig(Section):
    """Weights that a run starts from; `from: RUN` gives `backbone` and `head` the same run."""

    backbone: Path | None = Field(
        None,
        description="what the backbone's weights start from: a run directory, one checkpoint, or a file of weights; "
        "null is random",
    )
    head: Path | None = Field(
        None,
        description="what the class centers and their optimizer state start from, identity by identity: a run "
        "directory, one checkpoint, or exported centers; null is random",
    )
    allow_partial: bool = Field(
        False,
        description="whether tensors that the backbone lacks, has besides, or has in another shape are listed and left "
        "out rather than refused",
    )
    new_rows: Literal["embed", "random"] = Field(
        "embed",
        description="what the centers of identities that start.head does not know start from: the mean embedding of "
        "their pictures, or random numbers",
    )
    freeze: tuple[str, ...] = Field(
        (), description="parts that stand still: backbone, stem, stages.1 and so on, norms, head"
    )
    freeze_steps: int | None = Field(
        None, ge=1, description="first steps in which those parts stand still; null is all of them"
    )

    @model_validator(mode="before")
    @classmethod
    def _from_one_run(cls, values: Any) -> Any:  # noqa: ANN401 - whatever a recipe holds
        """`from` stands for `backbone` and `head`: a short form, which stored configurations do not have."""
        if not isinstance(values, dict) or "from" not in values:
            return values
        given = [key for key in ("backbone", "head") if values.get(key) is not None]
        if given and values["from"] is not None:
            raise ValueError(f"from stands for backbone and head; leave it out or {given[0]}")
        rest = {key: value for key, value in values.items() if key != "from"}
        return rest if values["from"] is None else rest | {"backbone": values["from"], "head": values["from"]}

    @model_validator(mode="after")
    def _parts_to_freeze(self) -> Self:
        for part in self.freeze:
            if not _PART.fullmatch(part):
                raise ValueError(f"freeze: {part!r} is no part; known: backbone, stem, stages.N, norms, head")
        if self.freeze_steps is not None and not self.freeze:
            raise ValueError("freeze_steps needs freeze, which says what stands still")
        if {"backbone", "head"} <= set(self.freeze):
            raise ValueError("freeze: backbone and head together leave nothing to train; give one of them")
        return self
