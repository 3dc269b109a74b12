"""Phases of a run: what a recipe changes from a step on, laid over what held before."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn, Self, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_serializer, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from dist_train.head.config import HeadConfig
from dist_train.head.margins.table import MARGINS
from dist_train.section import Section

MOST_PHASES = 100
_MARGIN_KEYS = frozenset[str]().union(*(spec.reads for spec in MARGINS.values()))
CHANGEABLE: dict[str, frozenset[str]] = {
    "head": _MARGIN_KEYS | {"sample_rate", "margin", "scale", "interclass_threshold", "filter_eps", "lr_scale"},
    "objectives": frozenset({"weight", "warmup_steps"}),  # of an objective that is there before; a new one may be any
    "optimizer": frozenset({"lr", "warmup_steps", "schedule", "power", "milestones", "gamma", "final_lr"}),
    "data": frozenset({"augment", "image_size"}),
    "start": frozenset({"freeze"}),
}
"""By section, what a phase may change: what needs no other rows, parameters or optimizer state than were there."""

Recipe = TypeVar("Recipe", bound=BaseModel)
Place = tuple[str | int, ...]


class PhaseConfig(Section):
    """A phase: a step, and sections with the keys that have other values from it on. Phases add up."""

    at: int = Field(ge=1, lt=2**63, description="the step from which on the phase's values hold; the first step is 0")
    head: dict[str, Any] = Field(
        {},
        description="sample_rate, margin, scale, the margins' own keys, interclass_threshold, filter_eps and lr_scale, "
        "as in the section `head`",
    )
    objectives: dict[str, Any] = Field(
        {},
        description="weight and warmup_steps of objectives, as in the section `objectives`, or further objectives; a "
        "weight rises, or falls, from the one before",
    )
    optimizer: dict[str, Any] = Field(
        {},
        description="lr, warmup_steps, schedule and its keys, as in the section `optimizer`; they begin a schedule of "
        "their own, which ends where another phase begins one",
    )
    data: dict[str, Any] = Field(
        {},
        description="augment and image_size, as in the section `data`; the size only for networks whose parameters do "
        "not depend on it",
    )
    start: dict[str, Any] = Field(
        {}, description="freeze, as in the section `start`: the parts that stand still in this phase"
    )

    @model_validator(mode="before")
    @classmethod
    def _no_fixed_section(cls, values: Any) -> Any:  # noqa: ANN401 - whatever a recipe holds
        """Name the sections that a recipe has and a phase has not as what they are: no typing errors."""
        fixed = {"run_dir", "seed", "program", "backbone", "contrast", "train", "checkpoint", "track", "evaluate"}
        fixed |= {"export", "phases"}
        if isinstance(values, dict) and (found := sorted(fixed & set(map(str, values)))):
            raise ValueError(f"{found[0]} cannot change within a run; a phase has at, {', '.join(CHANGEABLE)}")
        return values

    @model_serializer(mode="wrap")
    def _without_empty(self, dump: Callable[[Self], dict[str, Any]]) -> dict[str, Any]:
        """The step and the sections that the phase has."""
        return {name: value for name, value in dump(self).items() if value != {}}

    def sections(self) -> dict[str, dict[str, Any]]:
        """The sections that the phase changes, with what it gives them."""
        given = {name: getattr(self, name) for name in CHANGEABLE}
        return {name: values for name, values in given.items() if values}


def resolve(recipe: Recipe, phases: tuple[PhaseConfig, ...], steps: int | None) -> tuple[tuple[int, Recipe], ...]:
    """The recipes that hold one after another, each with the step it begins at; the first is `recipe` itself at 0.

    Args:
        recipe: without phases.
        phases: of the run.
        steps: of the run; None where they are not known yet.

    Raises:
        ValidationError: a phase that cannot be, with the key's place in the recipe, such as `phases.0.head.scale`.
    """
    found = [(0, recipe)]
    for number, phase in enumerate(phases):
        place: Place = ("phases", number)
        last, before = found[-1]
        if phase.at <= last:
            _refuse((*place, "at"), f"the phase before begins at step {last}; expected a later one", phase.at)
        if steps is not None and phase.at >= steps:
            _refuse((*place, "at"), f"such a step never comes in a run of {steps} steps, from 0 on", phase.at)
        sections = phase.sections()
        changed = {name: _changed(before, name, values, (*place, name)) for name, values in sections.items()}
        fields = {name: getattr(before, name) for name in type(before).model_fields}
        after = _validated(type(before), fields | changed, place)
        # A schedule that begins anew is a change, even with the same values.
        if "optimizer" not in sections and after.model_dump() == before.model_dump():
            _refuse(place, "the phase changes nothing; give it keys with other values, or remove it", sections)
        if "start" in sections:
            _check_freezing([earlier for _, earlier in found], after, (*place, "start", "freeze"))
        found.append((phase.at, after))
    return tuple(found)


def _changed(before: BaseModel, name: str, values: dict[str, Any], place: Place) -> BaseModel:
    """A section with some values of a phase."""
    section: BaseModel | None = getattr(before, name)
    if section is None:
        _refuse(place, f"the recipe has {name}: null, which a phase cannot change", values)
    kept = section.model_dump(exclude_unset=True)
    if name == "objectives":
        _check_objectives(kept, values, place)
    else:
        _check_keys(type(section), CHANGEABLE[name], values, place)
    if name == "start":
        kept.pop("freeze_steps", None)  # what stands still now does so until a phase says otherwise
    after = _validated(type(section), _merged(kept, values), place)
    if name == "head" and _has_bias(section) != _has_bias(after):
        text = "softmax keeps a bias in each row and other margins do not, so that a run stays with it or without it"
        _refuse((*place, "margin"), text, values.get("margin"))
    return after


def _check_freezing(earlier: list[Any], after: Any, place: Place) -> None:  # noqa: ANN401 - recipes, which stand above
    """Refuse parts that begin to train at different steps under AdamW, which counts the steps of all of them as one."""
    parts = set(after.start.freeze)
    others = [set(recipe.start.freeze) for recipe in earlier if recipe.start.freeze]
    if after.optimizer.name == "adamw" and parts and any(other != parts for other in others):
        text = (
            "with optimizer.name=adamw the same parts stand still in all phases that freeze any, or [], which is none"
        )
        _refuse(place, text, after.start.freeze)


def _has_bias(section: BaseModel) -> bool:
    return isinstance(section, HeadConfig) and not MARGINS[section.margin].normalised


def _check_objectives(kept: Mapping[str, Any], values: Mapping[str, Any], place: Place) -> None:
    for kind, keys in values.items():
        if kind in kept and isinstance(keys, dict):
            _check_keys(None, CHANGEABLE["objectives"], keys, (*place, kind))


def _check_keys(
    section: type[BaseModel] | None, changeable: frozenset[str], values: Mapping[str, Any], place: Place
) -> None:
    """Refuse keys that a section has and a phase cannot change; those that it has not are refused with the section."""
    for key, value in values.items():
        if key not in changeable and (section is None or key in section.model_fields):
            known = ", ".join(sorted(changeable))
            _refuse((*place, key), f"cannot change within a run; what can: {known}", value)


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """`new` laid over `old`, section by section."""
    merged = dict(old)
    for key, value in new.items():
        inner = merged.get(key)
        merged[key] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged


Model = TypeVar("Model", bound=BaseModel)


def _validated(model: type[Model], values: dict[str, Any], place: Place) -> Model:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ValidationError.from_exception_data(model.__name__, list(_moved(error, place))) from error


def _moved(error: ValidationError, place: Place) -> Iterator[InitErrorDetails]:
    for item in error.errors():
        details = InitErrorDetails(type=item["type"], loc=(*place, *item["loc"]), input=item["input"])
        if item["type"] not in ("extra_forbidden", "missing"):
            details["type"] = _custom(item["msg"])
        yield details


def _refuse(place: Place, message: str, found: object) -> NoReturn:
    details = InitErrorDetails(type=_custom(message), loc=place, input=found)
    raise ValidationError.from_exception_data("phases", [details])


def _custom(message: str) -> PydanticCustomError:
    return PydanticCustomError("value_error", "{message}", {"message": message})
