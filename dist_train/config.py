"""The typed configuration of a run: YAML, dotted overrides, and errors that name the key."""

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from dist_train.backbones.config import AnyBackboneConfig, backbone_section, section_class
from dist_train.contrast.config import ContrastConfig, check_without_labels
from dist_train.data.config import DataConfig
from dist_train.errors import UserError
from dist_train.evaluate.config import EvaluateConfig
from dist_train.export.config import ExportConfig
from dist_train.head.config import HeadConfig
from dist_train.objectives.config import ObjectivesConfig
from dist_train.phases import MOST_PHASES, PhaseConfig, resolve
from dist_train.recipe_tree import read_tree, short
from dist_train.section import Section, section_of
from dist_train.start.config import StartConfig


class TrainConfig(Section):
    """The `train` section: length, device, batches and precision of training."""

    epochs: float | None = Field(
        None, gt=0, description="how many times training goes through the set; give either epochs or steps"
    )
    steps: int | None = Field(
        None, ge=1, description="how many optimizer steps training makes; give either epochs or steps"
    )
    global_batch_size: int = Field(512, ge=2, description="pictures in a step, counted over all ranks")
    micro_batch_size: int | None = Field(
        None,
        ge=2,
        description="pictures in one forward pass of a rank; if a rank's share of a step is larger, gradients of "
        "several passes are added up. BatchNorm normalises over these pictures, so with this key set runs on other "
        "numbers of ranks agree",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="what to train on; auto takes the GPUs of the machine, or the CPU if it has none"
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="number format of the backbone's arithmetic; auto is bfloat16 on GPUs that have it, else float32",
    )
    strategy: Literal["ddp", "zero1", "zero2", "zero3"] = Field(
        "ddp",
        description="how the ranks hold the backbone: a whole copy each (ddp), or split by a stage of DeepSpeed ZeRO",
    )
    compile: bool = Field(False, description="whether torch.compile compiles the backbone")
    activation_checkpointing: bool = Field(
        False,
        description="whether only the input of each residual block is kept and its inside is computed a second time in "
        "the backward pass: less memory for about a third more arithmetic",
    )
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay of a moving average of the weights, which is evaluated and exported in their place",
    )
    max_bad_steps: int = Field(
        20, ge=1, description="the run stops after so many steps in a row whose loss or gradient is not finite"
    )
    timeout_s: float = Field(
        600.0,
        ge=1,
        description="longest time of a step or of an exchange between ranks, in seconds; after it every rank writes "
        "its stacks to the log and the job ends",
    )
    threads: int | None = Field(
        None, ge=1, description="CPU threads of each rank; by default the machine's cores divided by its ranks"
    )
    log_every: int = Field(10, ge=1, description="steps between two lines of metrics.jsonl and of the tracker")

    @model_validator(mode="after")
    def _one_length(self) -> "TrainConfig":
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give one of epochs and steps")
        return self

    @model_validator(mode="after")
    def _one_way_to_save_memory(self) -> "TrainConfig":
        if self.compile and self.activation_checkpointing:
            raise ValueError("compile decides itself what to compute again; set activation_checkpointing to false")
        return self


class OptimizerConfig(Section):
    """The `optimizer` section: the backbone's optimizer, and the learning rate of backbone and head."""

    name: Literal["sgd", "adamw"] = Field("sgd", description="optimizer of the backbone; the head has its own")
    lr: float = Field(0.1, gt=0, description="highest learning rate, reached after the warm-up")
    backbone_lr_scale: float = Field(
        1.0, gt=0, le=1000, description="the backbone's learning rate is that of the schedule times this factor"
    )
    layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="what the learning rate is multiplied by from each part of the backbone to the one before it, "
        "seen from the embedding; for transformers",
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD; adamw does not read it")
    weight_decay: float = Field(5e-4, ge=0, description="weight decay of the backbone's weights")
    decay_norms: bool = Field(
        True, description="whether weight decay also applies to biases and to the parameters of normalisation layers"
    )
    warmup_steps: int = Field(0, ge=0, description="steps in which the learning rate rises linearly from 0 to lr")
    schedule: Literal["cosine", "polynomial", "step", "constant"] = Field(
        "cosine", description="how the learning rate falls after the warm-up"
    )
    power: float = Field(2.0, gt=0, description="exponent of the polynomial schedule")
    milestones: tuple[int, ...] = Field(
        (), description="steps at which the step schedule lowers the learning rate, in rising order"
    )
    gamma: float = Field(
        0.1, gt=0, lt=1, description="what the step schedule multiplies the learning rate by at each milestone"
    )
    final_lr: float = Field(
        0.0, ge=0, description="learning rate at the last step of the cosine and polynomial schedules"
    )
    clip_norm: float | None = Field(
        None,
        gt=0,
        description="the backbone's gradient is scaled down to this L2 norm when it is larger; null never scales",
    )

    @model_validator(mode="after")
    def _milestones_of_step(self) -> "OptimizerConfig":
        if (self.schedule == "step") != bool(self.milestones):
            raise ValueError("schedule step and milestones go together: give both or neither")
        if list(self.milestones) != sorted(set(self.milestones)) or min(self.milestones, default=1) < 1:
            raise ValueError(f"milestones must be rising steps from 1, got {list(self.milestones)}")
        return self


class CheckpointConfig(Section):
    """The `checkpoint` section: when training state is written."""

    every_steps: int = Field(1000, ge=1, description="steps between checkpoints")
    every_minutes: float | None = Field(
        None,
        gt=0,
        description="a checkpoint is also written after so many minutes since the last; null counts steps alone",
    )
    keep: int = Field(
        2, ge=1, description="how many of the newest checkpoints stay on disk; the best one by evaluation stays too"
    )


class TrackConfig(Section):
    """The `track` section: where figures go besides metrics.jsonl."""

    wandb: Literal["offline", "online", "disabled"] = Field(
        "offline",
        description="whether figures also go to Weights & Biases: online, as files on this machine, or not at all",
    )
    project: str = Field("headcount", min_length=1, description="project in Weights & Biases")
    name: str | None = Field(
        None, description="name of the run in Weights & Biases; by default the name of the run directory"
    )
    artifacts: bool = Field(
        False, description="whether every checkpoint is also uploaded to Weights & Biases as an artifact"
    )


class RunConfig(Section):
    """A whole recipe: every section with its keys."""

    run_dir: Path = Field(description="directory to which the run writes everything")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of every random choice")
    program: Literal["recognition", "contrast"] = Field(
        "recognition",
        description="what is trained: a backbone that recognises by a head and objectives, or one that only learns to "
        "find the other view of a picture, without labels (contrast)",
    )
    data: DataConfig
    start: StartConfig = Field(default_factory=StartConfig)
    backbone: AnyBackboneConfig = Field(default_factory=lambda: backbone_section({}))
    head: HeadConfig | None = Field(default_factory=HeadConfig)
    objectives: ObjectivesConfig = Field(default_factory=ObjectivesConfig)
    contrast: ContrastConfig = Field(default_factory=ContrastConfig)
    train: TrainConfig
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    track: TrackConfig = Field(default_factory=TrackConfig)
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)
    export: ExportConfig = Field(default_factory=ExportConfig)
    phases: tuple[PhaseConfig, ...] = Field(
        (), max_length=MOST_PHASES, description="what changes at given steps, in rising order; see docs/phases.md"
    )

    @model_validator(mode="before")
    @classmethod
    def _no_head_without_labels(cls, values: Any) -> Any:  # noqa: ANN401 - whatever a recipe holds
        """Pre-training has no head, which its recipes need not say."""
        if isinstance(values, dict) and values.get("program") == "contrast":
            return {"head": None} | values
        return values

    @model_validator(mode="after")
    def _without_labels(self) -> "RunConfig":
        if self.program == "contrast":
            check_without_labels(self.head, self.objectives, self.data, self.start)
            for key, plain in (("strategy", "ddp"), ("ema_decay", None)):
                if getattr(self.train, key) != plain:
                    raise ValueError(f"program: contrast knows only train.{key}={plain or 'null'}")
            for number, phase in enumerate(self.phases):
                if phase.start:
                    raise ValueError(f"phases.{number}.start: program contrast lets parts stand still in all steps")
        return self

    @model_validator(mode="after")
    def _something_to_learn(self) -> "RunConfig":
        if self.head is None and self.program == "recognition":
            if not any(section.weight for section in self.objectives.given().values()):
                raise ValueError(
                    "head: null leaves nothing to train by; add an objective, e.g. objectives: {triplet: {}}"
                )
            if self.start.head is not None:
                raise ValueError("head: null has no rows that start.head could give a start to; remove one of them")
            if "head" in self.start.freeze:
                raise ValueError("start.freeze names the head, and head is null; remove one of them")
        return self

    @model_validator(mode="after")
    def _several_labels(self) -> "RunConfig":
        if self.data.labels_per_sample > 1:
            if self.head is None:
                raise ValueError("data.labels_per_sample is for the head's loss, and head is null; remove one of them")
            self.head.check_several_labels()
        return self

    @model_validator(mode="after")
    def _phases_that_can_be(self) -> "RunConfig":
        _ = self.recipes  # which raises ValueError for the first one that cannot be, with its key
        return self

    @property
    def recipes(self) -> "tuple[tuple[int, RunConfig], ...]":
        """The recipes that hold one after another, without phases, each with the step from which on it does."""
        return self._resolved if self.phases else ((0, self),)

    @cached_property
    def _resolved(self) -> "tuple[tuple[int, RunConfig], ...]":
        return resolve(self.model_copy(update={"phases": ()}), self.phases, self.train.steps)

    @property
    def views(self) -> int:
        """How many views of each picture the run takes, in any of its phases."""
        return 2 if self.program == "contrast" else max(recipe.objectives.views for _, recipe in self.recipes)

    def at(self, step: int) -> "RunConfig":
        """The recipe that holds in step `step` of 0, 1, ..., without phases; without any, the recipe itself."""
        return next(recipe for begin, recipe in reversed(self.recipes) if begin <= step)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """See pydantic; the copy works out its own recipes."""
        copy = super().model_copy(update=update, deep=deep)
        copy.__dict__.pop("_resolved", None)
        return copy


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a recipe and apply `section.key=value` overrides; a value is parsed as YAML.

    Raises:
        UserError: the file or an override cannot be read, a key is unknown or a value out of range.
    """
    tree = read_tree(path, overrides)
    try:
        config = RunConfig.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"config {path}:\n" + "\n".join(_explain(error, tree))) from error
    for key, value in _flatten(config.model_dump()):
        if _is_unusable(value):
            raise UserError(
                f"config {path}:\n  {key}: expected a finite number that 64 bits hold; found {short(value)}"
            )
    return config


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as YAML: every key with its value, defaults included."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def differences(old: RunConfig, new: RunConfig) -> list[str]:
    """Lines `key: old -> new` for every value that differs."""
    before, after = dict(_flatten(old.model_dump(mode="json"))), dict(_flatten(new.model_dump(mode="json")))
    keys = dict.fromkeys([*after, *before])
    changed = [key for key in keys if before.get(key, []) != after.get(key, [])]  # entries of lists come and go
    return [f"{key}: {before.get(key)!r} -> {after.get(key)!r}" for key in changed]


def _flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if value and isinstance(value, list | tuple) and all(isinstance(each, dict) for each in value):
            value = {str(number): each for number, each in enumerate(value)}
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _is_unusable(value: object) -> bool:
    """Whether a number is not finite or too large for the arithmetic that follows, here or in a list."""
    if isinstance(value, list | tuple):
        return any(_is_unusable(each) for each in value)
    if isinstance(value, float):
        return not math.isfinite(value)
    return isinstance(value, int) and not -(2**63) <= value < 2**63


def _explain(error: ValidationError, tree: dict[str, Any]) -> Iterator[str]:
    for item in error.errors():
        location = [str(part) for part in item["loc"]]
        key = ".".join(location)
        if item["type"] == "extra_forbidden":
            known = _keys_beside(location, tree)
            near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
            hint = f"did you mean {'.'.join([*location[:-1], near[0]])}?" if near else f"known: {', '.join(known)}"
            yield f"  {key}: unknown key; {hint}"
        elif item["type"] == "missing":
            yield f"  {key}: missing; it has no default"
        else:
            message = item["msg"].removeprefix("Value error, ")
            yield f"  {key or 'config'}: {message[:1].lower() + message[1:]}; found {short(item['input'])}"


def _keys_beside(location: list[str], tree: dict[str, Any]) -> list[str]:
    """Keys that the section of the last key of `location` knows, in a recipe like `tree`."""
    if location[:-1] == ["backbone"]:
        return list(section_class(tree["backbone"].get("name")).model_fields)
    model: type[BaseModel] = RunConfig
    inside_phase = location[0] == "phases" and len(location) > 3
    for part in location[2:-1] if inside_phase else location[:-1]:
        if part.isdecimal():  # a place in a list of sections
            continue
        inner = section_of(model.model_fields[part].annotation) if part in model.model_fields else None
        if inner is None:
            return []
        model = inner
    return list(model.model_fields)
