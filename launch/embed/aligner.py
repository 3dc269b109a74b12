"""The detector of a search for faces, as the network that will see them needs it."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from data_prep.detectors.detector import SHIPPED, shipped_digest
from data_prep.detectors.file import DetectorFile, read_detector_file
from dist_train.data.aligner import Aligner, warn_of_aligner
from dist_train.data.manifest import MANIFEST_NAME, load_manifest
from dist_train.data.tar_folder import is_tar
from dist_train.errors import UserError

logger = logging.getLogger(__name__)


def open_detector_file(path: Path | None, align: bool) -> DetectorFile | None:
    """The detector that was asked for; None: the cascade of the package.

    Raises:
        UserError: it cannot be used, or no face is looked for.
    """
    refuse_idle_detector(path, align)
    return None if path is None else read_detector_file(path, points=True)


def refuse_idle_detector(path: Path | None, align: bool) -> None:
    """Refuse a detector that would look for nothing.

    Raises:
        UserError: it is named, and faces are not looked for.
    """
    if path is not None and not align:
        raise UserError(f"--detector {path}: no face is looked for; add --align")


def source_aligner(source: Mapping[str, Any]) -> Aligner | None:
    """What aligned the photos of a gallery's source; None where they were aligned before, or by who knows what."""
    if not source.get("align"):
        return None
    if source.get("detector") is None:
        return Aligner(SHIPPED, shipped_digest())
    try:
        stored = DetectorFile.model_validate(source["detector"])
    except ValidationError:
        return None
    return Aligner(stored.name, stored.sha256)


def check_aligner(own: Aligner | None, other: Aligner | None, whose: str, any_aligner: bool) -> None:
    """Refuse to align faces for a network, or a gallery, by another detector than it knows.

    Args:
        own: that would align the photos; None: none would.
        other: that aligned what the network or the gallery knows; None: unknown.
        whose: what that is, for the message.
        any_aligner: whether another one is accepted.

    Raises:
        UserError: the two differ, and that is not accepted.
    """
    if own is None or other is None or own == other:
        return
    told = f"{whose} are aligned by {other}, these photos would be by {own}"
    if not any_aligner:
        raise UserError(f"{told}; {_way_out(other)}, or accept another: --any-aligner")
    logger.warning("%s", told)


def _way_out(wanted: Aligner) -> str:
    """How faces come to be aligned by that aligner."""
    if wanted.by_table or wanted.by_box:
        return "no --detector aligns so: give pictures that `headcount prep align` aligned so, without --align"
    if wanted == Aligner(SHIPPED, shipped_digest()):
        return "that detector is the one that comes along: leave --detector out"
    return "give that detector: --detector FILE"


def warn_of_set(trained: Aligner | None, source: Path) -> None:
    """Log if the pictures of a set were aligned by another than those that a network was trained on.

    Args:
        trained: what aligned those; None: unknown.
        source: of pictures that count as aligned: the set, one of its tars, or something else, of which none is known.
    """
    folder = source.parent if is_tar(source) else source
    if trained is None or not (folder / MANIFEST_NAME).is_file():
        return
    try:
        found = load_manifest(folder).aligner
    except UserError:  # of tars of others, or damaged: the pictures are read without it
        return
    warn_of_aligner(trained, str(source), found)
