"""The `contrast` section of a configuration: pre-training without labels."""

from pydantic import Field, model_validator

from dist_train.data.config import DataConfig
from dist_train.head.config import HeadConfig
from dist_train.objectives.config import ObjectivesConfig
from dist_train.section import Section
from dist_train.start.config import StartConfig


class ContrastConfig(Section):
    """How two views of a picture are told from views of others; read by `program: contrast` alone."""

    temperature: float = Field(0.2, gt=0, le=10, description="what cosines are divided by in the softmax")
    momentum: float = Field(
        0.99, ge=0, lt=1, description="share of itself that the momentum encoder keeps in the first step"
    )
    final_momentum: float = Field(
        1.0,
        ge=0,
        le=1,
        description="that share after the last step, to which it goes by half a cosine; equal to momentum: no change",
    )
    queue: int = Field(
        0,
        ge=0,
        le=1 << 24,
        description="keys of earlier steps that are negatives too, as in MoCo v2; 0: those of the step alone, as in "
        "MoCo v3",
    )
    hidden_dim: int = Field(4096, ge=2, le=65536, description="width of the projector's and the predictor's layers")
    projection_dim: int = Field(256, ge=2, le=8192, description="how many numbers a key has")

    @model_validator(mode="after")
    def _momentum_rises(self) -> "ContrastConfig":
        if self.final_momentum < self.momentum:
            raise ValueError(
                f"final_momentum {self.final_momentum:g} is below momentum {self.momentum:g}; expected at least as much"
            )
        return self


def check_without_labels(
    head: HeadConfig | None, objectives: ObjectivesConfig, data: DataConfig, start: StartConfig
) -> None:
    """See that sections of a recipe ask for nothing that pre-training cannot give.

    Raises:
        ValueError: the key, and what to do.
    """
    still = set(start.freeze) - {"stem"}
    for wrong, text in (
        (head is not None, "head: program contrast knows no identities and has no head; leave it out or write null"),
        (objectives.given(), "objectives: program contrast has one loss of its own; remove them"),
        (data.images_per_class, "data.images_per_class: program contrast reads no labels; set it to null"),
        (
            not data.augment.varies,
            "data.augment: program contrast learns by what two views of a picture differ in, and here that is nothing, "
            "or a mirror image at most; draw crops and colours, e.g. crop: 0.5, brightness: 0.4",
        ),
        (start.head, "start.head: program contrast has no head to start; name the network by start.backbone"),
        (
            still or start.freeze_steps,
            "start.freeze: program contrast lets only the stem stand still, and for all steps; remove "
            + (", ".join(sorted(still)) or "freeze_steps"),
        ),
    ):
        if wrong:
            raise ValueError(text)
