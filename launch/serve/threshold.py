"""The threshold of a service: from which cosine on two faces are one person, with the error that was measured there."""

from pathlib import Path
from typing import TYPE_CHECKING

from dist_train.errors import UserError
from dist_train.evaluate.calibration import Calibration, Point, read_calibration, stated_calibration
from launch.embed.decision import Decision, said_of

if TYPE_CHECKING:
    from dist_train.evaluate.models import Model


def served_threshold(
    model: "Model", flip: bool, fmr: float | None, path: Path | None, other_model: str = ""
) -> Decision | None:
    """The threshold of a rate; None where none was asked for and the model states none.

    Args:
        model: that embeds.
        flip: whether the mirrored face's embedding is added.
        fmr: share of pairs of two people that may match; None: the lowest that the calibration's pairs suffice for.
        path: figures by `headcount eval --json`; None for what the model's file states.
        other_model: name of the gallery's model, where it is another one.

    Raises:
        UserError: there is no such threshold, or it was measured otherwise.
    """
    owner = model.owner()
    found = stated_calibration(model.thresholds(), owner) if path is None else read_calibration(path, owner)
    if found is None:
        if fmr is None:
            return None
        raise UserError(
            f"--fmr {fmr:g}: model {model.name} states no thresholds; measure them, headcount eval MODEL --all-pairs "
            "SET --json EVAL.json, and give --calibration EVAL.json"
        )
    if found.flip not in (None, flip):
        raise UserError(
            f"the thresholds were measured {'with' if found.flip else 'without'} the mirrored picture; serve the model "
            f"{'with --flip' if found.flip else 'with --no-flip'}"
        )
    if found.told != dict(model.told):
        raise UserError(
            f"the thresholds were measured with {said_of(found.told)} of the model, it would be served with "
            f"{said_of(dict(model.told))}; say of the model what was said then"
        )
    if fmr is not None:
        return Decision(*found.at(fmr), found, 0, other_model)
    point = _lowest(found)
    if point is None or point.threshold is None:
        if path is None:
            return None
        raise UserError(f"--calibration {path}: its pairs suffice for none of its rates; choose one by --fmr")
    return Decision(point.threshold, point, found, 0, other_model)


def _lowest(found: Calibration) -> Point | None:
    """The point of the lowest rate that was measured."""
    measured = [point for point in found.operating_points if point.resolved and point.threshold is not None]
    return min(measured, key=lambda point: point.fmr, default=None)
