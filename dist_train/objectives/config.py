"""The `objectives` section of a configuration: terms of the loss beside the head's, a field for each kind."""

from collections.abc import Callable
from typing import Any

from pydantic import Field, field_validator, model_serializer

from dist_train.section import Section


class ObjectiveConfig(Section):
    """The keys that every objective has."""

    weight: float = Field(1.0, ge=0, le=1e6, description="what the term is multiplied by in the loss; 0 leaves it out")
    warmup_steps: int = Field(0, ge=0, description="steps in which the weight rises linearly from 0")

    def weight_at(self, step: int) -> float:
        """The weight in step `step` of 0, 1, ..."""
        return self.weight * min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else self.weight


class ObjectivesConfig(Section):
    """Terms of the loss beside the head's; any of them at once, each with a weight of its own."""

    @field_validator("*", mode="before")
    @classmethod
    def _no_empty_section(cls, value: Any) -> Any:  # noqa: ANN401 - whatever a recipe holds
        """Refuse `triplet:` with nothing after it, which looks switched on."""
        if value is None:
            raise ValueError("expected keys of the objective; write {} for its defaults, or remove the line")
        return value

    @model_serializer(mode="wrap")
    def _without_absent(self, dump: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """The objectives that are there: what is dumped can be read again."""
        return {name: section for name, section in dump(self).items() if section is not None}

    def given(self) -> dict[str, ObjectiveConfig]:
        """The objectives of the recipe by name, in the order of the fields."""
        found = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: section for name, section in found.items() if section is not None}
