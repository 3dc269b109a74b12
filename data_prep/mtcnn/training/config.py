"""The recipe of a detector's training: which photos, and how each of the three networks learns."""

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, model_validator

from dist_train.errors import UserError
from dist_train.recipe_tree import read_tree
from dist_train.runtime.files import first_fault
from dist_train.section import Section

MOST_CROPS = 1024
"""Of a photo."""


class NetworkConfig(Section):
    """How one network of the cascade learns."""

    steps: int = Field(4000, ge=1, le=10_000_000, description="optimizer steps")
    batch: int = Field(512, ge=2, le=65_536, description="crops in a step, counted over all ranks")
    lr: float = Field(2e-3, gt=0, le=100, description="highest learning rate; it falls to 0 by half a cosine")
    warmup_steps: int = Field(100, ge=0, description="steps in which the learning rate rises linearly from 0")
    box_weight: float = Field(0.5, ge=0, le=1000, description="weight of the box's loss; that of the class is 1")
    points_weight: float = Field(0.5, ge=0, le=1000, description="weight of the five points' loss")
    crops: int = Field(
        56,
        ge=7,
        le=MOST_CROPS,
        description="most crops of a photo: negatives, parts, faces and landmark faces as 3 : 1 : 1 : 2",
    )


class OutputNetworkConfig(NetworkConfig):
    """As `NetworkConfig`, with the paper's weight of the points, which O-Net alone gives."""

    points_weight: float = Field(1.0, ge=0, le=1000, description="weight of the five points' loss")


class DetectorRecipe(Section):
    """A whole recipe of `headcount prep train-detector`."""

    out: Path = Field(description="directory to which the training writes everything, the detector last")
    sets: tuple[Path, ...] = Field(
        min_length=1, max_length=64, description="lists of photos with known faces, or the folders of such sets"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="seed of every random choice")
    heldout: float = Field(0.05, gt=0, lt=1, description="share of the photos by which thresholds are chosen, alone")
    most_heldout: int = Field(500, ge=1, description="most photos of that share")
    min_face_px: float = Field(
        20, ge=12, le=1000, description="longer side of the smallest face to learn, in pixels; smaller ones are ignored"
    )
    hard_mining: float = Field(
        0.7, gt=0, le=1, description="share of a batch, of largest losses, that counts for face or no face; 1: all"
    )
    recall: float = Field(
        0.99, gt=0, le=1, description="share of the held-out faces that P-Net's and R-Net's thresholds leave of theirs"
    )
    false_alarms: float = Field(
        0.1, gt=0, description="false alarms per held-out photo that O-Net's threshold is chosen for"
    )
    pnet: NetworkConfig = Field(default_factory=NetworkConfig)
    rnet: NetworkConfig = Field(default_factory=NetworkConfig)
    onet: OutputNetworkConfig = Field(default_factory=OutputNetworkConfig)
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="optimizer of the networks; sgd has momentum 0.9")
    weight_decay: float = Field(1e-4, ge=0, description="weight decay")
    flip: float = Field(0.5, ge=0, le=1, description="probability that a crop is mirrored, its points with it")
    jitter: float = Field(
        0.2, ge=0, lt=1, description="strength of random changes to brightness, contrast and saturation"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="what to train on; auto takes the GPUs of the machine, or the CPU if it has none"
    )
    threads: int | None = Field(
        None, ge=1, description="CPU threads of each rank; by default the machine's cores divided by its ranks"
    )
    workers: int | None = Field(
        None, ge=0, le=256, description="processes of a rank that decode crops; by default as cores allow"
    )
    checkpoint_steps: int = Field(500, ge=1, description="steps between checkpoints")
    timeout_s: float = Field(600.0, ge=1, description="longest time of a step or of an exchange between ranks")

    @model_validator(mode="after")
    def _something_is_kept(self) -> "DetectorRecipe":
        for name, network in self.networks().items():
            if network.warmup_steps > network.steps:
                raise ValueError(f"{name}.warmup_steps {network.warmup_steps} is more than its {network.steps} steps")
        return self

    def networks(self) -> dict[str, NetworkConfig]:
        """The sections of the networks, in the order in which they are trained."""
        return {"pnet": self.pnet, "rnet": self.rnet, "onet": self.onet}


def load_recipe(path: Path, overrides: list[str]) -> DetectorRecipe:
    """Read a recipe and apply `section.key=value` overrides.

    Raises:
        UserError: the file or an override cannot be read, a key is unknown or a value out of range.
    """
    tree = read_tree(path, overrides)
    try:
        return DetectorRecipe.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"recipe {path}: {first_fault(error)}") from None
