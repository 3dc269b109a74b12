"""The file of figures that `headcount eval --json` writes: a list with an object for each model."""

import math
from pathlib import Path
from typing import Any

from dist_train.evaluate.kinds import KINDS
from dist_train.evaluate.tables import ModelScores
from dist_train.runtime.written import write_failures, write_json


def figures_of(scores: ModelScores) -> dict[str, Any]:
    """All results of a model, a list for each kind of sets."""
    return {kind.name: [result.summary() for result in getattr(scores, kind.name)] for kind in KINDS}


def write_figures(path: Path, body: list[dict[str, Any]]) -> None:
    """Write the objects of all models, by rename.

    Raises:
        WorkError: the file cannot be written.
    """
    with write_failures(f"figures {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, _finite(body))


def _finite(value: Any) -> Any:  # noqa: ANN401  any JSON value
    """The value with null for numbers that JSON does not know."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
