"""The file of a detector, as a plan stores it."""

from pathlib import Path

from data_prep.detectors.detector import FaceDetector
from data_prep.detectors.open import open_detector
from dist_train.errors import UserError
from dist_train.section import Section


class DetectorFile(Section):
    """A detector's file; the digest tells whether it has changed since.

    Attributes:
        path: path of the file.
        name: of the kind of detector in it.
        sha256: digest of its bytes.
    """

    path: Path
    name: str
    sha256: str

    def check(self, opened: FaceDetector) -> None:
        """Refuse another detector than the one that was stored.

        Raises:
            UserError: the file has changed.
        """
        if opened.digest != self.sha256:
            raise UserError(
                f"detector {self.path}: has SHA-256 {opened.digest} now, had {self.sha256} when the work began; put "
                "the old file back, or begin anew with another output"
            )


def read_detector_file(path: Path, points: bool, device: str = "cpu") -> DetectorFile:
    """The detector at `path`, opened once, so that a file that is none is refused before any work begins.

    Args:
        path: of the file.
        points: whether landmarks are needed.
        device: cpu or cuda, which it has to run on.

    Raises:
        UserError: `open_detector` refuses it, or it finds no landmarks where they are needed.
    """
    detector = open_detector(path.absolute(), device)
    if points:
        require_points(detector, path)
    return DetectorFile(path=path.absolute(), name=detector.name, sha256=detector.digest)


def require_points(detector: FaceDetector, path: Path | None) -> None:
    """Refuse a detector, from the file at `path`, that finds no landmarks.

    Raises:
        UserError: it finds none.
    """
    if not detector.has_points:
        raise UserError(f"detector {path}: a {detector.name} without landmarks; add --crop box, or use one with them")
