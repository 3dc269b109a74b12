"""The `objectives` section of a configuration: terms of the loss beside the head's, a field for each kind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_serializer, model_validator

from dist_train.section import Section


class ObjectiveConfig(Section):
    """The keys that every objective has."""

    views: ClassVar[int] = 1  # of each sample

    weight: float = Field(1.0, ge=0, le=1e6, description="what the term is multiplied by in the loss; 0 leaves it out")
    warmup_steps: int = Field(0, ge=0, description="steps in which the weight rises linearly from 0")

    def weight_at(self, step: int) -> float:
        """The weight in step `step` of 0, 1, ..."""
        return self.weight * min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else self.weight


class TripletConfig(ObjectiveConfig):
    """Pictures of one identity nearer than those of others, by a margin (Schroff et al. 2015, Hermans et al. 2017)."""

    mining: Literal["semi_hard", "batch_hard"] = Field(
        "semi_hard",
        description="which triplets of the batch count: for each pair of an identity the nearest negative that is "
        "farther than the pair, or for each picture its farthest positive and its nearest negative",
    )
    margin: float = Field(
        0.2, gt=0, le=4, description="how much farther a negative must be, in squared distances of unit embeddings"
    )


class SupConConfig(ObjectiveConfig):
    """Pictures of one identity told apart from the rest of the batch by a softmax over it (Khosla et al. 2020)."""

    temperature: float = Field(0.1, ge=0.001, le=10, description="what cosines are divided by")


class CenterConfig(ObjectiveConfig):
    """Embeddings drawn to a center of their identity (Wen et al. 2016)."""

    centers: Literal["own", "head"] = Field(
        "own", description="whose centers: a table of this term's own, which follows the embeddings, or the head's rows"
    )
    alpha: float = Field(
        0.5, gt=0, le=1, description="how fast own centers follow the mean of their identity's embeddings in a step"
    )

    @model_validator(mode="after")
    def _alpha_is_of_own_centers(self) -> Self:
        if self.centers == "head" and self.alpha != type(self).model_fields["alpha"].default:
            raise ValueError("centers: head moves no center by alpha, the head's optimizer does; remove alpha")
        return self


class SampleToSampleConfig(ObjectiveConfig):
    """Pairs of one identity above one learned threshold, all other pairs below it (USS loss, Jia et al. 2023)."""

    scale: float = Field(64.0, gt=0, le=1024, description="gamma: what cosines are multiplied by")
    margin: float = Field(0.1, ge=0, le=1, description="what is taken from the cosines of pairs of one identity")
    lr_scale: float = Field(
        1.0, ge=0, le=1000, description="the threshold's learning rate is that of the schedule times this factor"
    )


class DistillConfig(ObjectiveConfig):
    """A teacher that the embeddings follow; docs/objectives.md has the formulas of its terms."""

    teacher: Path = Field(
        description="the network that teaches: a run directory, one checkpoint, exported weights or an ONNX file; or "
        "embeddings of the training set by `headcount embed`, a .parquet or .npy"
    )
    cosine: float = Field(1.0, ge=0, le=1e6, description="weight of 1 - cosine to the teacher's embedding")
    relations: float = Field(
        0.0, ge=0, le=1e6, description="weight of the difference between both matrices of cosines within the batch"
    )
    soft_labels: float = Field(
        0.0,
        ge=0,
        le=1e6,
        description="weight of the divergence between both distributions over the step's classes; the teacher is a run",
    )
    temperature: float = Field(4.0, gt=0, le=1000, description="what logits of soft labels are divided by")

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        if not (self.cosine or self.relations or self.soft_labels):
            raise ValueError("cosine, relations and soft_labels are all 0; give one of them a weight")
        return self


class CompatibleConfig(ObjectiveConfig):
    """An older run in whose galleries the embeddings can be searched; the run alone is the short form."""

    run: Path = Field(description="the older run: its directory, or one of its checkpoints")

    @model_validator(mode="before")
    @classmethod
    def _from_run(cls, values: Any) -> Any:  # noqa: ANN401 - whatever a recipe holds
        """`compatible_with: RUN` stands for `{run: RUN}`."""
        return {"run": values} if isinstance(values, str | Path) else values


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

    triplet: TripletConfig | None = None
    supcon: SupConConfig | None = None
    center: CenterConfig | None = None
    sample_to_sample: SampleToSampleConfig | None = None
    distill: DistillConfig | None = Field(None, description="a teacher that the embeddings follow; null is none")
    compatible_with: CompatibleConfig | None = Field(
        None, description="an older run in whose galleries the embeddings can be searched; null is none"
    )
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
