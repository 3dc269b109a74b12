"""The detector that a file stands for."""

from pathlib import Path

from data_prep.detectors.detector import FaceDetector
from dist_train.errors import UserError


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
    if file is None or file.suffix == ".safetensors":
        from data_prep.detectors.cascade import CascadeDetector

        return CascadeDetector(file, device, min_face_px, thresholds, batch_px, min_score)
    if file.suffix != ".onnx":
        raise UserError(f"detector {file}: expected a .safetensors of `headcount prep train-detector`, or an .onnx")
    if thresholds is not None:
        raise UserError(f"thresholds {thresholds} are of a cascade's three networks; {file} is one: use --min-score")
    from data_prep.detectors.onnx_detector import MIN_SCORE, SIDE_PX, OnnxDetector

    return OnnxDetector(
        file, device, min_face_px, MIN_SCORE if min_score is None else min_score, batch_px, side_px or SIDE_PX
    )
