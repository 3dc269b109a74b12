"""Whether a picture that a search found is a match: by a threshold with a measured error, and what that means here."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from dist_train.errors import UserError
from dist_train.evaluate.calibration import Calibration, Owner, Point, read_calibration, stated_calibration
from dist_train.runtime.text import shown_start

if TYPE_CHECKING:
    from dist_train.embed.gallery import Gallery

MATCH, NO_MATCH = "match", "no match"


class Measured(Protocol):
    """A model, or a fusion of several, that thresholds may have been measured of."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def told(self) -> Mapping[str, str]:
        """What the user said of it."""

    @property
    def thresholds(self) -> Callable[[], str]:
        """Reads the thresholds that it states; empty for none."""

    def owner(self) -> Owner:
        """As thresholds know it."""


class Decision(NamedTuple):
    """A threshold in use.

    Attributes:
        threshold: cosine from which on a picture is a match.
        point: what was measured of it.
        calibration: where.
        rows: pictures in the gallery.
        other_model: name of the gallery's model where that is not the one that was measured; empty where it is.
    """

    threshold: float
    point: Point
    calibration: Calibration
    rows: int
    other_model: str = ""

    def verdict(self, score: float) -> str:
        """What a cosine says."""
        return MATCH if score >= self.threshold else NO_MATCH

    @property
    def title(self) -> str:
        """The threshold in a few words."""
        return f"match from {self.threshold:.4f} on (FMR {self.point.fmr:g})"

    def told(self) -> list[str]:
        """What a user should know of the threshold.

        A search among N pictures is N comparisons: with independent ones somebody who is not there is taken for
        someone in 1 - (1 - FMR)^N of the searches, which is N x FMR while that is small (ISO/IEC 19795-1, FPIR).
        """
        fmr, measured = self.point.fmr, self.calibration
        expected = self.rows * fmr
        fpir = 1.0 if fmr == 1 else -math.expm1(self.rows * math.log1p(-fmr))
        lines = [
            f"threshold {self.threshold:.4f}: measured on {shown_start(measured.set)}, where at most {fmr:g} of "
            f"{measured.impostor_pairs:,} pairs of two identities reach it (FMR), and "
            f"{self.point.fnmr_text()} of {measured.genuine_pairs:,} pairs of one do not (FNMR)",
            f"among the gallery's {self.rows:,} pictures a stranger meets {expected:.2g} false matches on average "
            f"(N x FMR), and finds at least one in {fpir:.2%} of searches (FPIR), if people are like those of that set",
        ]
        if not self.point.resolved:
            lines.append(
                f"warning: {measured.impostor_pairs:,} pairs of two identities are too few for an FMR of {fmr:g}: "
                f"{math.ceil(3 / fmr):,} are needed (rule of three); the true rate may be several times as large"
            )
        if self.other_model:
            lines.append(
                f"warning: the gallery was embedded with {shown_start(self.other_model)}, and the threshold was "
                "measured among pictures of --model alone: the rates may differ"
            )
        return lines


def check_options(fmr: float | None, calibration: Path | None) -> None:
    """Refuse a calibration without a rate.

    Raises:
        UserError: the options do not go together.
    """
    if calibration is not None and fmr is None:
        raise UserError(f"--calibration {calibration}: for which rate? Give --fmr, e.g. --fmr 1e-4")


def decide(gallery: "Gallery", model: Measured, fmr: float, path: Path | None) -> Decision:
    """The threshold of a model for a rate, by a file of figures or as the model states it.

    Args:
        gallery: that is searched.
        model: that the photo is embedded with.
        fmr: the rate.
        path: of the figures; None for the thresholds that the model's file states.

    Raises:
        UserError: there is no threshold of this model for this rate.
    """
    owner = model.owner()
    found = stated_calibration(model.thresholds(), owner) if path is None else read_calibration(path, owner)
    if found is None:
        raise UserError(
            f"--fmr {fmr:g}: model {model.name} states no thresholds; measure them, headcount eval MODEL --all-pairs "
            "SET --json EVAL.json, and give --calibration EVAL.json"
        )
    threshold, point = found.at(fmr)
    made_by = gallery.made_by["model"]
    if found.flip not in (None, bool(gallery.made_by["flip"])):
        with_, without = ("with", "without") if found.flip else ("without", "with")
        raise UserError(
            f"the thresholds were measured {with_} the mirrored picture, gallery {gallery.directory} was embedded "
            f"{without} it; evaluate as the gallery was embedded (--flip, --no-flip)"
        )
    if found.told != dict(model.told):
        raise UserError(
            f"the thresholds were measured with {said_of(found.told)} of the model, the photo would be embedded with "
            f"{said_of(dict(model.told))}; say of the model what was said then"
        )
    other = "" if made_by["sha256"] == owner.digest else str(made_by["name"])
    return Decision(threshold, point, found, len(gallery), other)


def said_of(told: dict[str, str]) -> str:
    """What a user said of a model."""
    return shown_start(", ".join(f"{name} {value}" for name, value in told.items())) or "nothing said"
