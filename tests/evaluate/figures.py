"""Files of figures with operating points, as `headcount eval --json` writes them."""

import json
from pathlib import Path
from typing import Any


def point(fmr: float, threshold: float | None, **changed: Any) -> dict[str, Any]:
    body = {"fmr": fmr, "threshold": threshold, "measured_fmr": fmr, "fnmr": 0.032, "fnmr_95": [0.028, 0.039]}
    return {**body, "resolved": True, **changed}


def figures(digest: str | None, points: list[dict[str, Any]], sets: tuple[str, ...] = ("visitors",)) -> dict[str, Any]:
    """What is said of one model; without a digest as an older version said it."""
    measured = [
        {
            "set": name,
            "pictures": 60,
            "identities": 20,
            "genuine_pairs": 60,
            "impostor_pairs": 1710,
            "operating_points": points,
            "notes": [],
        }
        for name in sets
    ]
    told = {"model": "tiny", "model_sha256": digest, "verification": [{"cmc": [1.0]}], "all_pairs": measured}
    return told if digest else {key: value for key, value in told.items() if key != "model_sha256"}


def write_figures(path: Path, *models: object) -> Path:
    path.write_text(json.dumps(models))
    return path
