"""The `data` section of a configuration."""

from typing import Literal

from pydantic import Field, model_validator

from dist_train.section import Section


class AugmentConfig(Section):
    """Random changes to a training picture. A probability or a strength of 0 turns a change off."""

    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")
    rotation: float = Field(0.0, ge=0, le=180, description="largest rotation either way, degrees")
    crop: float = Field(1.0, gt=0, le=1, description="smallest side of a random crop, as a share of the picture")
    brightness: float = Field(0.0, ge=0, lt=1, description="colours are scaled by 1 - b .. 1 + b")
    contrast: float = Field(0.0, ge=0, lt=1, description="distance to mid-grey is scaled by 1 - c .. 1 + c")
    saturation: float = Field(0.0, ge=0, lt=1, description="distance to the pixel's own grey is scaled likewise")
    grey: float = Field(0.0, ge=0, le=1, description="probability of no colour at all")
    low_resolution: float = Field(0.0, ge=0, le=1, description="probability of a reduction and enlargement")
    low_resolution_scale: float = Field(0.3, gt=0, le=1, description="strongest reduction, as a share of the side")
    blur: float = Field(0.0, ge=0, le=1, description="probability of a Gaussian blur")
    blur_sigma: float = Field(2.0, gt=0, le=10, description="strongest blur, standard deviation in pixels")
    jpeg: float = Field(0.0, ge=0, le=1, description="probability of JPEG compression")
    jpeg_quality: int = Field(30, ge=5, le=95, description="lowest JPEG quality; the highest is 95")
    erase: float = Field(0.0, ge=0, le=1, description="probability of a rectangle of mid-grey")
    erase_side: float = Field(0.5, gt=0, le=1, description="largest side of that rectangle, as a share of the picture")


class SourceConfig(Section):
    """A further set that is mixed in."""

    path: str = Field(min_length=1, description="directory or address of the set")
    weight: float = Field(gt=0, description="share of the batch, relative to the other weights")
    shared_labels: bool = Field(
        False, description="its labels mean the same identities as data.path's; else they follow after them"
    )


class DataConfig(Section):
    """Which pictures are trained on, in what order, and how they get into memory."""

    path: str = Field(min_length=1, description="the set: a directory of shards, or its http, s3 or gs address")
    weight: float = Field(1.0, gt=0, description="share of data.path in a batch when data.mix names further sets")
    mix: tuple[SourceConfig, ...] = Field((), description="further sets, drawn from by weight")
    image_size: int | None = Field(
        None, ge=16, le=1024, description="side of the pictures in pixels; default: the manifest's"
    )
    label_key: str = Field("label", min_length=1, description="key of the label in samples that have no .cls")
    backend: Literal["auto", "opencv", "dali"] = Field(
        "auto", description="who decodes and augments; auto: DALI where there is a GPU, else OpenCV"
    )
    workers: int | None = Field(
        None, ge=0, le=256, description="decoding processes per rank; 0: in the training process; default: from cores"
    )
    prefetch: int = Field(3, ge=1, le=64, description="batches prepared ahead")
    window_shards: int = Field(16, ge=1, description="samples are shuffled within this many shuffled shards")
    images_per_class: int | None = Field(
        None, ge=2, description="K of P x K batches for metric losses; default: plain shuffling"
    )
    last_batch: Literal["drop", "pad"] = Field(
        "drop", description="the last, partial batch of an epoch: dropped, or filled with the epoch's first samples"
    )
    max_bad_fraction: float = Field(0.01, ge=0, le=1, description="the run stops above this share of bad samples")
    check_at_start: bool = Field(True, description="compare shards with the manifest before training")
    timeout_s: float = Field(300.0, gt=0, description="longest wait for a batch, seconds")
    cache_dir: str | None = Field(
        None, description="where remote shards are kept; default: headcount in the user's cache directory"
    )
    cache_gb: float = Field(50.0, gt=0, description="largest size of that cache, gigabytes of 1e9 bytes")
    retries: int = Field(5, ge=0, le=20, description="further tries for a remote shard, with doubling pauses")
    augment: AugmentConfig = Field(default_factory=AugmentConfig, description="random changes to training pictures")

    @model_validator(mode="after")
    def _one_kind_of_order(self) -> "DataConfig":
        if self.mix and self.images_per_class:
            raise ValueError("images_per_class and mix cannot be combined; merge the sets with `headcount prep`")
        return self
