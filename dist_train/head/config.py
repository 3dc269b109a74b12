"""The `head` section of a configuration."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from dist_train.head.margins.table import MARGINS
from dist_train.section import Section

if TYPE_CHECKING:
    MarginName = str
else:  # a type checker takes no names from a table, pydantic does
    MarginName = Literal[tuple(MARGINS)]


class AdaFaceConfig(Section):
    """How AdaFace turns an embedding's norm into image quality (Kim et al. 2022, section 3)."""

    concentration: float = Field(0.333, gt=0, description="h: how sharply the margin follows the norm")
    momentum: float = Field(
        0.99, ge=0, lt=1, description="share of the old value in the moving mean and deviation of the norms"
    )


class MagFaceConfig(Section):
    """MagFace's norm range, margin range and regulariser (Meng et al. 2021, section 3)."""

    lower_norm: float = Field(10.0, gt=0, description="l_a: smaller embedding norms count as this one")
    upper_norm: float = Field(110.0, gt=0, description="u_a: larger embedding norms count as this one")
    lower_margin: float = Field(0.45, ge=0, le=1.5, description="l_m: margin in radians at lower_norm")
    upper_margin: float = Field(0.8, ge=0, le=1.5, description="u_m: margin in radians at upper_norm")
    weight: float = Field(35.0, ge=0, description="lambda_g: weight of the norm regulariser")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.lower_norm >= self.upper_norm:
            raise ValueError(f"lower_norm {self.lower_norm} must be below upper_norm {self.upper_norm}")
        if self.lower_margin > self.upper_margin:
            raise ValueError(f"lower_margin {self.lower_margin} must not exceed upper_margin {self.upper_margin}")
        return self


class AdaptiveConfig(Section):
    """Per-class margins from class counts: the rarer the class, the larger the margin."""

    lowest: float = Field(0.3, ge=0, le=1.5, description="margin in radians of the most frequent class")
    highest: float = Field(0.7, ge=0, le=1.5, description="margin in radians of the rarest class")
    power: float = Field(0.25, gt=0, le=2, description="margins follow count ** -power (LDAM: 1/4)")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.lowest > self.highest:
            raise ValueError(f"lowest {self.lowest} must not exceed highest {self.highest}")
        return self


class HeadConfig(Section):
    """The class-sharded classifier: margin, sampling, row optimizer, storage; `head: null` trains without one."""

    margin: MarginName = Field("arcface", description="the margin-softmax loss; docs/margins.md has the formulas")
    scale: float | None = Field(
        None, gt=0, le=1024, description="s: what cosines are multiplied by; null is the margin's own default"
    )
    m1: float | None = Field(
        None, ge=0.5, le=8, description="what the angle is multiplied by; null is the margin's own default"
    )
    m2: float | None = Field(
        None, ge=0, le=1.5, description="what is added to the angle, in radians; null is the margin's own default"
    )
    m3: float | None = Field(
        None, ge=0, le=1, description="what is subtracted from the cosine; null is the margin's own default"
    )
    easy_margin: bool = Field(
        False, description="whether arcface applies its margin only where the target's cosine is positive"
    )
    curricular_momentum: float = Field(
        0.99, ge=0, lt=1, description="share of the old value in curricularface's moving mean of the target's cosine"
    )
    adaface: AdaFaceConfig = Field(AdaFaceConfig(), description="parameters of the adaface margin")
    magface: MagFaceConfig = Field(MagFaceConfig(), description="parameters of the magface margin")
    adaptive: AdaptiveConfig = Field(AdaptiveConfig(), description="parameters of the adaptive margin")
    centers_per_class: int = Field(
        1, ge=1, le=16, description="centers for each class (K of sub-center losses); the nearest one counts"
    )
    interclass_threshold: float | None = Field(
        None, gt=-1, lt=1, description="negatives above this cosine are ignored, for noisy sets; null ignores none"
    )

    sample_rate: float = Field(
        1.0, gt=0, le=1, description="share of the classes that takes part in each step's softmax (Partial FC)"
    )
    filter_eps: float = Field(
        0.0,
        ge=0,
        le=0.01,
        description="softmax weights below this value are left out of the backward pass, with the rows that have no "
        "larger ones; 0 leaves out none",
    )

    optimizer: Literal["sgd", "rowwise_adagrad", "adamw"] = Field("sgd", description="optimizer of the class centers")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of sgd; other optimizers do not read it")
    beta1: float = Field(0.9, ge=0, lt=1, description="decay of adamw's mean of gradients")
    beta2: float = Field(0.999, ge=0, lt=1, description="decay of adamw's mean of squared gradients")
    optimizer_eps: float = Field(
        1e-8, gt=0, le=1, description="what rowwise_adagrad and adamw add to the root that they divide by"
    )
    weight_decay: float = Field(5e-4, ge=0, le=1, description="weight decay of the rows that a step chose")
    lr_scale: float = Field(
        1.0, gt=0, le=1000, description="the head's learning rate is that of the schedule times this factor"
    )
    init_std: float = Field(
        0.01, gt=0, le=10, description="standard deviation of the normal distribution that rows start from"
    )

    arithmetic: Literal["auto", "float32", "tf32", "bfloat16"] = Field(
        "auto",
        description="what the operands of the head's products are rounded to, all else being float32; auto is bfloat16 "
        "on GPUs that have it, else float32",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="number format of stored centers and moments; bfloat16 is rounded stochastically"
    )
    storage: Literal["device", "host", "mmap"] = Field(
        "device",
        description="where centers and their optimizer state are kept: GPU or CPU that trains, host memory, or a file",
    )
    storage_dir: Path | None = Field(None, description="directory of the memory-mapped files; mmap needs it")
    logits_budget_mb: int | None = Field(
        None,
        ge=1,
        le=1 << 20,
        description="most memory for logits that are kept for the backward pass, beyond which they are computed twice; "
        "null is 2048 on a GPU and 256 on a CPU",
    )
    block_rows: int | None = Field(
        None, ge=1, le=1 << 24, description="centers that are handled at a time; null fits them to the device's caches"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        spec = MARGINS[self.margin]
        every = frozenset().union(*(other.reads for other in MARGINS.values()))
        idle = sorted((self.model_fields_set & every) - spec.reads)
        idle = [name for name in idle if getattr(self, name) != type(self).model_fields[name].default]
        if idle:
            readers = {name: sorted(m for m, other in MARGINS.items() if name in other.reads) for name in idle}
            raise ValueError(f"margin {self.margin!r} does not read {idle}; they belong to {readers}")
        if not spec.normalised and (self.scale is not None or self.interclass_threshold is not None):
            raise ValueError(
                f"margin {self.margin!r} has no cosines: head.scale and head.interclass_threshold must be null"
            )
        if self.storage == "mmap" and self.storage_dir is None:
            raise ValueError("head.storage=mmap needs head.storage_dir, the directory of its files")
        return self

    @property
    def needs_class_counts(self) -> bool:
        """Whether the margin takes the number of images of each class."""
        return MARGINS[self.margin].needs_class_counts

    def check_several_labels(self) -> None:
        """Raise ValueError where the margin takes samples with one label only."""
        if not MARGINS[self.margin].several_labels:
            able = ", ".join(name for name, spec in MARGINS.items() if spec.several_labels)
            raise ValueError(
                f"head.margin={self.margin} takes one label a sample, and data.labels_per_sample asks for more; those "
                f"that take several: {able}"
            )

    def logits_budget(self, device_type: str) -> int:
        """Bytes of logits that may stay from the forward pass to the step on "cuda" or "cpu"."""
        megabytes = self.logits_budget_mb or (2048 if device_type == "cuda" else 256)
        return megabytes * 2**20
