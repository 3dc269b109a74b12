"""The layouts by name, and the search for the one that a folder has."""

from pathlib import Path

from data_prep.layouts.faces import AGEDB, CFP, RFW, TINYFACE, XQLFW
from data_prep.layouts.layout import Layout
from data_prep.layouts.market import MARKET
from data_prep.layouts.products import FOLDERS, INSHOP, SOP
from dist_train.errors import UserError

LAYOUTS = {each.name: each for each in (SOP, INSHOP, MARKET, TINYFACE, CFP, AGEDB, XQLFW, RFW, FOLDERS)}


def find_layout(folder: Path, name: str | None = None) -> Layout:
    """The layout called `name`, or the one by whose marks a folder is known.

    Raises:
        UserError: no such folder, an unknown name, or marks of no layout or of several.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name the folder of an unpacked set")
    if name is not None:
        if name not in LAYOUTS:
            raise UserError(f"--layout {name!r}: expected one of {', '.join(LAYOUTS)}")
        return LAYOUTS[name]
    found = {each.name: mark for each in LAYOUTS.values() if (mark := _mark(folder, each)) is not None}
    if len(found) > 1:
        told = " and ".join(f"{name} ({mark})" for name, mark in found.items())
        raise UserError(f"{folder}: looks like {told}; say which by --layout, or name the folder of one set")
    if not found:
        told = "; ".join(f"{each.name}: {' or '.join(each.marks)}" for each in LAYOUTS.values() if each.marks)
        raise UserError(
            f"{folder}: of no known layout ({told}); for a folder of pictures for each identity say --layout folders"
        )
    return LAYOUTS[next(iter(found))]


def _mark(folder: Path, layout: Layout) -> str | None:
    """A mark by which a folder is known, or None."""
    if layout is AGEDB:  # known by the form of its names alone
        return next((path.name for path in folder.glob("[0-9]*_*_[0-9]*_[fm].jpg")), None)
    return next((mark for mark in layout.marks if (folder / mark).exists()), None)
