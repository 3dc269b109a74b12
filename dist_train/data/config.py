"""The `data` section of a configuration."""

from typing import Literal

from pydantic import Field, model_validator

from dist_train.section import Section


class AugmentConfig(Section):
    """Random changes to a training picture. A probability or a strength of 0 turns a change off."""

    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")
    rotation: float = Field(0.0, ge=0, le=180, description="largest rotation to either side, in degrees")
    crop: float = Field(1.0, gt=0, le=1, description="smallest side of a random crop, as a share of the picture's side")
    brightness: float = Field(
        0.0, ge=0, lt=1, description="b: colours are multiplied by a random factor from 1 - b to 1 + b"
    )
    contrast: float = Field(
        0.0, ge=0, lt=1, description="c: the distance to mid-grey is multiplied by a factor from 1 - c to 1 + c"
    )
    saturation: float = Field(
        0.0, ge=0, lt=1, description="s: the distance to a pixel's own grey is multiplied by 1 - s to 1 + s"
    )
    grey: float = Field(0.0, ge=0, le=1, description="probability that a picture loses its colours")
    low_resolution: float = Field(
        0.0, ge=0, le=1, description="probability that a picture is shrunk and enlarged again"
    )
    low_resolution_scale: float = Field(
        0.3, gt=0, le=1, description="smallest side that low_resolution shrinks to, as a share of the picture's side"
    )
    blur: float = Field(0.0, ge=0, le=1, description="probability of a Gaussian blur")
    blur_sigma: float = Field(2.0, gt=0, le=10, description="standard deviation of the strongest blur in pixels")
    jpeg: float = Field(0.0, ge=0, le=1, description="probability of JPEG compression")
    jpeg_quality: int = Field(30, ge=5, le=95, description="lowest quality of the JPEG compression; the highest is 95")
    erase: float = Field(0.0, ge=0, le=1, description="probability that a rectangle of a picture becomes mid-grey")
    erase_side: float = Field(
        0.5, gt=0, le=1, description="largest side of the erased rectangle, as a share of the picture's side"
    )

    @property
    def varies(self) -> bool:
        """Whether two draws of a picture may differ in more than a flip."""
        strengths = self.rotation, self.brightness, self.contrast, self.saturation
        rare = self.low_resolution, self.blur, self.jpeg, self.erase
        return self.crop < 1 or any(strengths) or any(rare) or 0 < self.grey < 1


class SourceConfig(Section):
    """A further set that is mixed in."""

    path: str = Field(min_length=1, description="directory or address of the set")
    weight: float = Field(gt=0, description="the set's share of a batch, relative to the weights of the other sets")
    shared_labels: bool = Field(
        False,
        description="whether a label means the same identity as in data.path; if not, the identities are further ones",
    )
    labelled: bool = Field(
        True,
        description="whether the set's labels are read; if not, it adds no identities, and its pictures take part only "
        "in objectives that need no label",
    )
    loss_weight: float | None = Field(
        None, ge=0, le=1e6, description="as data.loss_weight, for this set; an unlabelled one has none"
    )

    @model_validator(mode="after")
    def _unlabelled(self) -> "SourceConfig":
        if not self.labelled and self.shared_labels:
            raise ValueError("shared_labels: a set with labelled: false has none; remove one of the two")
        if not self.labelled and self.loss_weight is not None:
            raise ValueError("loss_weight weighs losses that need labels, and labelled is false; remove one of the two")
        return self


class DataConfig(Section):
    """Which pictures are trained on, in what order, and how they get into memory."""

    path: str = Field(min_length=1, description="the set: a directory of shards, or its http, s3 or gs address")
    weight: float = Field(
        1.0, gt=0, description="share of data.path in a batch when data.mix names further sets, relative to theirs"
    )
    loss_weight: float | None = Field(
        None,
        ge=0,
        le=1e6,
        description="what the mean loss over the pictures of data.path in a batch is multiplied by; the loss is then "
        "the sum over all labelled sets, of which each gives its loss_weight. By default the mean over all pictures",
    )
    mix: tuple[SourceConfig, ...] = Field(
        (), description="further sets; each picture of a batch comes from one of the sets, chosen by weight"
    )
    any_aligner: bool = Field(
        False,
        description="whether sets of data.mix may be aligned by another detector than data.path, which puts the same "
        "face at another place; sets that do not say by which are accepted always",
    )
    image_size: int | None = Field(
        None, ge=16, le=1024, description="side of the pictures in pixels; by default that of the manifest"
    )
    label_key: str = Field(
        "label", min_length=1, description="key of the label in the .json of samples that have no .cls"
    )
    labels_per_sample: int = Field(
        1,
        ge=1,
        le=256,
        description="most labels of a sample; above 1 its labels are the list `labels` in its .json, and its own one, "
        "and the head's loss is that of several labels (docs/clusters.md)",
    )
    backend: Literal["auto", "opencv", "dali"] = Field(
        "auto", description="library that decodes and augments; auto is DALI where there is a GPU, else OpenCV"
    )
    workers: int | None = Field(
        None,
        ge=0,
        le=256,
        description="decoding processes of a rank; 0 decodes in the training process; by default as cores allow",
    )
    prefetch: int = Field(3, ge=1, le=64, description="how many batches are prepared ahead of training")
    window_shards: int = Field(
        16, ge=1, description="shards in a window; shards are shuffled, then samples within each window of shards"
    )
    images_per_class: int | None = Field(
        None,
        ge=2,
        description="K: a batch holds K pictures of each of its identities (P x K batches); null shuffles all pictures",
    )
    last_batch: Literal["drop", "pad"] = Field(
        "drop",
        description="whether the last, partial batch of an epoch is dropped or filled with the epoch's first samples",
    )
    max_bad_fraction: float = Field(
        0.01, ge=0, le=1, description="the run stops when more than this share of samples cannot be read"
    )
    check_at_start: bool = Field(True, description="whether shards are compared with the manifest before training")
    timeout_s: float = Field(300.0, gt=0, description="longest wait for a batch in seconds")
    cache_dir: str | None = Field(
        None,
        description="directory that keeps remote shards; by default headcount in the user's cache directory",
    )
    cache_gb: float = Field(50.0, gt=0, description="largest size of the cache in gigabytes of 1e9 bytes")
    retries: int = Field(
        5, ge=0, le=20, description="how many more times a remote shard is tried after a failure; pauses double"
    )
    augment: AugmentConfig = Field(default_factory=AugmentConfig, description="random changes to training pictures")

    @model_validator(mode="after")
    def _one_kind_of_order(self) -> "DataConfig":
        if self.mix and self.images_per_class:
            raise ValueError("images_per_class and mix cannot be combined; merge the sets with `headcount prep`")
        return self

    @model_validator(mode="after")
    def _weights_of_all_or_none(self) -> "DataConfig":
        weights = {"loss_weight": self.loss_weight}
        weights |= {f"mix.{number}.loss_weight": each.loss_weight for number, each in self.labelled_mix()}
        given = [key for key, weight in weights.items() if weight is not None]
        if not given:
            return self
        if absent := [key for key in weights if key not in given]:
            raise ValueError(f"{given[0]} is given, {absent[0]} is not: give every labelled set one, or none")
        if len(weights) == 1:
            raise ValueError("loss_weight: weighs labelled sets against each other, and there is one; remove it")
        if not any(weights.values()):
            raise ValueError("loss_weight: 0 for every set, so that nothing is left of the loss; give one a weight")
        return self

    def labelled_mix(self) -> list[tuple[int, SourceConfig]]:
        """The further sets whose labels are read, with their numbers in `mix`."""
        return [(number, each) for number, each in enumerate(self.mix) if each.labelled]

    def labelled(self) -> list[bool]:
        """For `path` and then each set of `mix`, whether its labels are read."""
        return [True, *(each.labelled for each in self.mix)]
