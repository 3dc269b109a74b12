"""A folder of tars, and what else lies in it: nothing that was meant as input is passed over without a word."""

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

from dist_train.data.manifest import MANIFEST_NAME
from dist_train.data.tar_samples import PHOTO_EXTENSIONS
from dist_train.errors import UserError
from dist_train.runtime.text import shown_name

log = logging.getLogger(__name__)

_COMPRESSED = re.compile(r"\.(tar\.\w{1,4}|t[gbxz]z2?|tbz2?|tzst)$", re.IGNORECASE)


def is_tar(path: Path) -> bool:
    """Whether a path is named as a tar is."""
    return path.suffix.lower() == ".tar"


def is_compressed_tar(path: Path) -> bool:
    """Whether a path is named as a compressed tar is, which is not read: its files have no places to read them at."""
    return _COMPRESSED.search(path.name) is not None


def tars_in(folder: Path) -> list[Path]:
    """The tars in a folder, by name."""
    return sorted(
        path for path in folder.iterdir() if is_tar(path) and not path.name.startswith(".") and path.is_file()
    )


def refuse_other_inputs(folder: Path, *, photos: bool) -> None:
    """Refuse a folder of tars in which further input lies that would not be read; a set with a manifest is complete.

    Tars in folders in it, which are as likely another set, are named in the log; so are photos that are no input.

    Args:
        folder: has tars in it.
        photos: whether photos are input, too.

    Raises:
        UserError: compressed tars, or photos beside the tars.
    """
    tars = tars_in(folder)
    if not tars or (folder / MANIFEST_NAME).exists():
        return
    first = shown_name(tars[0].name)
    passed_over: list[str] = []
    for path in _files(folder):
        name = shown_name(str(path.relative_to(folder)))
        if is_compressed_tar(path):
            raise UserError(
                f"{folder}: {name} lies beside {first} and is compressed, so that its files cannot be read by their "
                "place: decompress it, or move it away"
            )
        if is_tar(path) and path.parent != folder:
            passed_over.append(name)
        if path.suffix[1:].lower() in PHOTO_EXTENSIONS:
            if photos:
                raise UserError(f"{folder}: holds both a tar, {first}, and photos, as {name}: move one kind elsewhere")
            passed_over.append(name)
    if passed_over:
        log.warning(
            "%s: files beside %s that are not read: %d, e.g. %s", folder, first, len(passed_over), passed_over[0]
        )


def _files(folder: Path) -> Iterator[Path]:
    """Files below a folder that are not hidden, those of a folder before those of folders in it."""
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(here, name) for name in sorted(names) if not name.startswith("."))
