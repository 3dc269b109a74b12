"""The detector that a file stands for."""

from pathlib import Path

from data_prep.detectors.detector import FaceDetector
from dist_train.errors import UserError


def check_scores(file: Path | None, thresholds: tuple[float, float, float] | None, min_score: float | None) -> None:
    """Refuse lowest scores that `open_detector` does not take, before any work begins.

    Raises:
        UserError: out of range, or of another kind of detector.
    """
    if thresholds is not None and file is not None and file.suffix == ".onnx":
        raise UserError(f"thresholds {thresholds} are of a cascade's three networks; {file} is one: use --min-score")
    if thresholds is not None and min_score is not None:
        raise UserError(f"min_score {min_score} is the last of the thresholds {thresholds}; give one of the two")
    if thresholds is not None and not all(0 < each < 1 for each in thresholds):
        raise UserError(f"thresholds are {thresholds}, expected numbers between 0 and 1")
    if min_score is not None and not 0 < min_score < 1:
        raise UserError(f"min_score is {min_score}, expected a number between 0 and 1")


def open_detector(
    file: Path | None = None,
    device: str = "cpu",
    min_face_px: float = 20,
    thresholds: tuple[float, float, float] | None = None,
    batch_px: int = 8_000_000,
    min_score: float | None = None,
    side_px: int | None = None,
) -> FaceDetector:
    """The detector in `file`.

    Args:
        file: `.safetensors` of a trained cascade, or `.onnx`; None: the cascade that comes with this package.
        device: cpu or cuda.
        min_face_px: side of the smallest face to be found, in pixels.
        thresholds: lowest scores that the cascade's three networks accept; default: those of its file, or 0.6, 0.7
            and 0.7. An ONNX detector has none.
        batch_px: most pixels in work at a time.
        min_score: lowest score of a face, of any detector; default: the cascade's last threshold, 0.5 of others.
        side_px: longest side at which pictures go through an ONNX network of free size; default 640.

    Raises:
        UserError: no such file, none of these kinds, or options that do not go together.
    """
    check_scores(file, thresholds, min_score)
    if file is None or file.suffix == ".safetensors":
        from data_prep.detectors.cascade import CascadeDetector

        return CascadeDetector(file, device, min_face_px, thresholds, batch_px, min_score)
    if file.suffix != ".onnx":
        raise UserError(f"detector {file}: expected a .safetensors of `headcount prep train-detector`, or an .onnx")
    from data_prep.detectors.onnx_detector import MIN_SCORE, SIDE_PX, OnnxDetector

    return OnnxDetector(
        file, device, min_face_px, MIN_SCORE if min_score is None else min_score, batch_px, side_px or SIDE_PX
    )
