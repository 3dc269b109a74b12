"""A calibration: thresholds of one model, with the errors that a set has there.

`headcount eval --json` measures it; an exported file may state it.
"""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import Field, TypeAdapter

from dist_train.errors import UserError
from dist_train.runtime.files import first_fault, read_bounded
from dist_train.runtime.text import shown_start

THRESHOLDS_KEY = "thresholds"
"""Entry of an exported file's metadata: a calibration as JSON."""
WEIGHTS_KEY = "weights_sha256"
"""Entry of an exported file's metadata: digest of the weights that it was made of, as runs know them."""
_MOST_BYTES = 64 << 20  # of a file of figures
_MOST_TEXT = 1 << 18  # characters of an entry in metadata
_MOST_NAMED = 5  # in a message

_Rate = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_Cosine = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
_Pairs = Annotated[int, Field(ge=0, le=1 << 62)]
_Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True, slots=True)
class Point:
    """A threshold. Null stands for what could not be measured.

    Attributes:
        fmr: demanded share of pairs of two identities that match, above 0.
        threshold: cosine from which on a pair matches.
        fnmr: share of pairs of one identity that do not match.
        fnmr_95: interval of the latter.
        resolved: whether the pairs sufficed to measure the rate.
    """

    fmr: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
    threshold: _Cosine | None
    fnmr: _Rate | None
    fnmr_95: tuple[_Rate | None, _Rate | None]
    resolved: bool

    def fnmr_text(self) -> str:
        """The share of pairs of one identity that do not match, in words."""
        if self.fnmr is None:
            return "not measured"
        low, high = self.fnmr_95
        interval = "" if low is None or high is None else f" (95 %: {low:.2%} to {high:.2%})"
        return f"{self.fnmr:.2%}{interval}"


@dataclass(frozen=True, slots=True)
class Calibration:
    """Thresholds of one model, measured on one set.

    Attributes:
        model_sha256: digest of the model, see `dist_train.evaluate.models.Model`.
        set: name of the set.
        genuine_pairs: pairs of one identity in it.
        impostor_pairs: pairs of two.
        operating_points: the thresholds.
        flip: whether the mirrored picture's embedding was added; None where it is not said.
        told: what a user said of an ONNX file of others, which makes its embeddings others.
    """

    model_sha256: _Digest
    set: str
    genuine_pairs: _Pairs
    impostor_pairs: _Pairs
    operating_points: Annotated[tuple[Point, ...], Field(min_length=1, max_length=100)]
    flip: bool | None = None
    told: dict[str, str] = field(default_factory=dict)

    def at(self, fmr: float) -> tuple[float, Point]:
        """The threshold of a rate, and what was measured there.

        Raises:
            UserError: it was not measured; the message has those that were.
        """
        found = next((point for point in self.operating_points if math.isclose(point.fmr, fmr, rel_tol=1e-6)), None)
        usable = [f"{point.fmr:g}" for point in self.operating_points if point.threshold is not None]
        if found is None or found.threshold is None:
            raise UserError(
                f"--fmr {fmr:g}: no threshold was measured for it on {shown_start(self.set)}; there is one for "
                f"{', '.join(usable) or 'no rate'}"
            )
        return found.threshold, found

    def to_text(self) -> str:
        """The calibration as an entry of a file's metadata."""
        return json.dumps(asdict(self))


@dataclass(frozen=True, slots=True)
class _Measured:
    """An entry of the kind `all_pairs` in a file of figures."""

    set: str
    genuine_pairs: _Pairs
    impostor_pairs: _Pairs
    operating_points: Annotated[tuple[Point, ...], Field(min_length=1, max_length=100)]


@dataclass(frozen=True, slots=True)
class _Evaluated:
    """What a file of figures says of one model."""

    model: str
    model_sha256: _Digest | None = None
    flip: bool | None = None
    told: dict[str, str] = field(default_factory=dict)
    all_pairs: Annotated[tuple[_Measured, ...], Field(max_length=1000)] = ()


_FIGURES: TypeAdapter[list[_Evaluated]] = TypeAdapter(Annotated[list[_Evaluated], Field(max_length=1000)])
_STATED: TypeAdapter[Calibration] = TypeAdapter(Calibration)


class Owner(NamedTuple):
    """A model whose thresholds are wanted.

    Attributes:
        name: for messages.
        digest: of the model.
        weights: digest of the weights that an exported file was made of; empty where it is none, or does not say it.
        exported: whether it is an exported file whose digest is not that of its weights.
    """

    name: str
    digest: str
    weights: str = ""
    exported: bool = False

    def owns(self, digest: str | None) -> bool:
        """Whether what was measured of the model with this digest holds for this one."""
        return digest in (self.digest, self.weights) and bool(digest)

    def __str__(self) -> str:
        origin = f", exported from weights {self.weights[:12]}" if self.weights else ""
        return f"{self.name} (SHA-256 {self.digest[:12]}{origin})"


def read_calibration(path: Path, owner: Owner) -> Calibration:
    """The thresholds of a model in a file of figures.

    Raises:
        UserError: the file is missing or another one, is of other models, has no thresholds, or those of several sets.
    """
    try:
        figures = _FIGURES.validate_json(read_bounded(path, _MOST_BYTES))
    except (OSError, ValueError) as error:
        raise UserError(
            f"--calibration {path}: {first_fault(error)}; expected figures by `headcount eval --json`"
        ) from error
    # What was measured of an exported file itself comes before what was measured of the run that it is from.
    own = [each for each in figures if each.model_sha256 == owner.digest] or [
        each for each in figures if owner.owns(each.model_sha256)
    ]
    if not own:
        raise UserError(f"--calibration {path}: {_of_others(figures, owner)}")
    measured = [
        Calibration(
            model.model_sha256 or "",
            each.set,
            each.genuine_pairs,
            each.impostor_pairs,
            each.operating_points,
            model.flip,
            model.told,
        )
        for model in own
        for each in model.all_pairs
    ]
    # A model that was named twice is there twice.
    found = list({(each.model_sha256, each.set, each.flip, each.operating_points): each for each in measured}.values())
    if not found:
        raise UserError(
            f"--calibration {path}: no operating points in it; measure them on all pairs of a set: headcount eval "
            f"MODEL --all-pairs SET --json {path}"
        )
    if len(found) > 1:
        raise UserError(
            f"--calibration {path}: thresholds of {len(found)} sets, "
            f"{', '.join(shown_start(each.set) for each in found[:_MOST_NAMED])}, and one must decide; evaluate on the "
            "one that is most like the pictures in use"
        )
    return found[0]


def stated_calibration(text: str, owner: Owner) -> Calibration | None:
    """The thresholds that an exported file states; None where it states none.

    Raises:
        UserError: damaged, or of another model.
    """
    if not text:
        return None
    try:
        if len(text) > _MOST_TEXT:
            raise ValueError(f"{len(text):,} characters, expected at most {_MOST_TEXT:,}")
        found = _STATED.validate_json(text)
    except ValueError as error:
        raise UserError(f"model {owner.name}: its thresholds: {first_fault(error)}; export it again") from error
    if not owner.owns(found.model_sha256):
        raise UserError(
            f"model {owner}: the thresholds that it states are of a model with SHA-256 {found.model_sha256[:12]}; the "
            "file was changed: export it again"
        )
    return found


def _of_others(figures: list[_Evaluated], owner: Owner) -> str:
    """What to say where no figures are of the model."""
    told = ", ".join(
        f"{shown_start(each.model)} ({(each.model_sha256 or 'no digest')[:12]})" for each in figures[:_MOST_NAMED]
    )
    why = f"figures of {told or 'no model'}, and none of {owner}; a threshold holds for the model it was measured with"
    if owner.exported and not owner.weights:
        why += f"; {owner.name} does not say which weights it was exported from"
    return f"{why}: evaluate this one, headcount eval MODEL --all-pairs SET --json FILE"
