"""The base of every section of a recipe and of every stored description."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Values from a file or a caller: unknown keys are errors, and nothing changes after construction."""

    model_config = ConfigDict(extra="forbid", frozen=True)
