"""The `objectives` section of a configuration: terms of the loss beside the head's, a field for each kind."""

from collections.abc import Callable
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_serializer

from dist_train.section import Section


class ObjectiveConfig(Section):
    """The keys that every objective has."""

    views: ClassVar[int] = 1  # of each sample

    weight: float = Field(1.0, ge=0, le=1e6, description="what the term is multiplied by in the loss; 0 leaves it out")
    warmup_steps: int = Field(0, ge=0, description="steps in which the weight rises linearly from 0")

    def weight_at(self, step: int) -> float:
        """The weight in step `step` of 0, 1, ..."""
        return self.weight * min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else self.weight


class ConsistencyConfig(ObjectiveConfig):
    """Agreement of the embeddings of two views of a sample, for which no label is needed."""

    views: ClassVar[int] = 2

    samples: Literal["all", "unlabelled"] = Field(
        "all", description="whether every sample takes part, or those of sets with labelled: false alone"
    )


class CoralConfig(ObjectiveConfig):
    """Distance between the covariances of the embeddings of data.path and of the sets of data.mix."""


class ObjectivesConfig(Section):
    """Terms of the loss beside the head's; any of them at once, each with a weight of its own."""

    consistency: ConsistencyConfig | None = Field(
        None, description="agreement of two views of each sample; a step then costs two forward passes"
    )
    coral: CoralConfig | None = Field(
        None, description="alignment of the domains of data.path and data.mix by the covariances of their embeddings"
    )

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

    @property
    def views(self) -> int:
        """Views of each sample that the objectives need."""
        return max((each.views for each in self.given().values() if each.weight), default=1)

    def given(self) -> dict[str, ObjectiveConfig]:
        """The objectives of the recipe by name, in the order of the fields."""
        found = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: section for name, section in found.items() if section is not None}
