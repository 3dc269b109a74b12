"""The command `headcount prep eval-detector`."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_prep.detectors.options import (
    DetectorOption,
    MinScoreOption,
    OnnxSideOption,
    ThresholdsOption,
    refuse_idle_side,
)
from dist_train.errors import WorkError
from dist_train.runtime.terminal import echo

if TYPE_CHECKING:
    from dist_train.data.reject import Reject

logger = logging.getLogger(__name__)

_NAMED = 3  # photos in a message


def eval_detector(
    faces: Annotated[
        Path,
        typer.Argument(help="folder or list of photos with known faces: WIDER FACE, CelebA, FDDB, a table, drawn ones"),
    ],
    detector: DetectorOption = None,
    min_face: Annotated[float, typer.Option(min=12, help="side of the smallest face to find, in pixels")] = 20,
    thresholds: ThresholdsOption = None,
    min_score: MinScoreOption = None,
    longer_side: OnnxSideOption = None,
    device: Annotated[str, typer.Option(help="where the detector runs: cpu or cuda")] = "cpu",
    json: Annotated[Path | None, typer.Option(help="file to write all figures to, as JSON")] = None,
    report: Annotated[
        Path | None, typer.Option(help="HTML file to write: figures, curves, misses and false alarms as pictures")
    ] = None,
) -> None:
    """Measure how well a detector finds faces whose places are known.

    Recall against false alarms per photo, average precision, recall by height, errors of the five points; for WIDER
    FACE its average precision by subset, for FDDB its discrete score. docs/detector.md says how each is counted.

    Examples:

      headcount prep eval-detector data/heldout

      headcount prep eval-detector WIDER/wider_face_split/wider_face_val_bbx_gt.txt --json wider.json

      headcount prep eval-detector data/heldout --detector mine.safetensors --report seen.html
    """
    from dist_train.runtime.extras import require

    if report is not None:
        require("report", "headcount prep eval-detector --report")
    from data_prep.detectors.open import open_detector
    from data_prep.faces.annotated import open_faces
    from data_prep.faces.listed import OUTSIDE, said
    from data_prep.judge.figures import figures_of, summary
    from data_prep.judge.report import tables_of, write_report
    from data_prep.judge.search import search
    from data_prep.judge.subsets import read_subsets
    from dist_train.evaluate.figures_file import write_figures

    refuse_idle_side(longer_side, detector)
    given = open_faces(faces)
    given.tell()
    given.check_left(given.photos, given.odd)
    if given.ellipses is not None:
        require("fddb", f"headcount prep eval-detector {faces}")
    subsets = read_subsets(given) if given.name == "wider" else {}
    finder = open_detector(detector, device, min_face, thresholds, min_score=min_score, side_px=longer_side)
    result = search(given.photos, finder)
    if not result.found:
        raise WorkError(
            f"{given.path}: none of its {len(given.photos):,} photos can be read: {_told(result.unreadable)}"
        )
    outside = {OUTSIDE: result.outside} if result.outside else {}
    if outside:
        logger.info("%s: odd faces: %s", given.path, said(outside))
    odd = given.odd | outside
    given.check_left((each.photo for each in result.found), odd)
    figures = figures_of(given, result, subsets)
    echo("\n\n".join(map(str, tables_of(figures))))
    if json is not None:
        body = {
            "set": {"layout": given.name, "path": str(given.path), "sha256": given.digest, "odd": odd},
            "detector": {
                "name": finder.name,
                "sha256": finder.digest,
                "min_face_px": min_face,
                "longer_side_px": longer_side,
            },
            "unreadable": [{"photo": name, "reason": each.reason} for name, each in result.unreadable],
        }
        write_figures(json, [body | summary(figures)])
    if report is not None:
        name = finder.name if detector is None else detector.name
        write_report(report, f"Faces found by {name}", f"{given.path}", result.found, figures)
    if result.unreadable:
        raise WorkError(
            f"{len(result.unreadable):,} of {len(given.photos):,} photos could not be read, and the figures are "
            f"without them: {_told(result.unreadable)}"
        )


def _told(unreadable: "list[tuple[str, Reject]]") -> str:
    told = [f"{name}: {each.reason}: {each.detail}" for name, each in unreadable[:_NAMED]]
    return "; ".join(told) + ("; ..." if len(unreadable) > _NAMED else "")
