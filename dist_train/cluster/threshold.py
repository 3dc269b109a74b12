"""The threshold of a calibration: what `headcount eval --json` found for a rate of false matches."""

import json
import logging
import math
from pathlib import Path
from typing import Any

from dist_train.errors import UserError
from dist_train.runtime.files import read_bounded

logger = logging.getLogger(__name__)

_MOST_BYTES = 64 << 20


def calibrated_threshold(path: Path, fmr: float, model_sha256: str) -> float:
    """The cosine from which on two pictures match at the rate of false matches `fmr`, by one set of pictures.

    Args:
        path: written by `headcount eval --json`.
        fmr: one of the rates that it has.
        model_sha256: of the model that embedded.

    Raises:
        UserError: no such file, another model, no such rate, or several sets.
    """
    try:
        found = json.loads(read_bounded(path, _MOST_BYTES))
        sets = [each for model in found if model["model_sha256"] == model_sha256 for each in model["all_pairs"]]
        points = {str(each["set"]): [_point(point) for point in each["operating_points"]] for each in sets}
    except FileNotFoundError:
        raise UserError(
            f"calibration {path}: no such file; make it with `headcount eval MODEL -s SET --json {path}`"
        ) from None
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise UserError(
            f"calibration {path}: cannot be read ({type(error).__name__}: {error}); expected what `headcount eval "
            "MODEL -s SET --json FILE` writes"
        ) from error
    if not sets:
        raise UserError(
            f"calibration {path}: is not of the model {model_sha256[:12]} that embedded the pictures; evaluate that one"
        )
    if len(sets) > 1:
        raise UserError(f"calibration {path}: has thresholds by {len(sets)} sets ({', '.join(points)}); expected one")
    ((name, rates),) = points.items()
    for rate, threshold, resolved in rates:
        if math.isclose(rate, fmr, rel_tol=1e-6):
            if not resolved:
                logger.warning(
                    "calibration %s: %s has too few pairs of different people for a rate of %g", path, name, fmr
                )
            return threshold
    raise UserError(f"calibration {path}: no rate {fmr:g}; it has {', '.join(f'{rate:g}' for rate, _, _ in rates)}")


def _point(point: dict[str, Any]) -> tuple[float, float, bool]:
    return float(point["fmr"]), float(point["threshold"]), bool(point["resolved"])
