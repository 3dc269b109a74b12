"""Which faces of WIDER FACE count in which subset: easy, medium, hard, or where their lists are not there, by size.

`wider_easy_val.mat` and its like, from the set's `eval_tools`, hold for every photo the numbers of the faces that
count. Without them the three scales of the set's paper are used: faces of 10 to 50, 50 to 300, and more than 300 pixels
height (Yang, Luo, Loy, Tang, CVPR 2016, section 3).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.faces.annotated import AnnotatedPhoto, FaceList
from data_prep.judge.mat import read_mat
from data_prep.judge.search import Found
from dist_train.errors import UserError
from dist_train.runtime.text import shown

_LISTS = ("easy", "medium", "hard")
_FOLDERS = (".", "ground_truth", "eval_tools/ground_truth", "wider_face_split")
_SCALES = {"small, 10 to 50 px": (10, 50), "medium, 50 to 300 px": (50, 300), "large, over 300 px": (300, np.inf)}

Subsets = dict[str, dict[str, NDArray[np.int64]]]
"""By subset and name of photo the numbers of the faces that count, from 0."""


def read_subsets(faces: FaceList) -> Subsets:
    """The subsets of a set of WIDER FACE whose lists are beside it; none where they are not there.

    Raises:
        UserError: only some of the lists are there, one is damaged, or of another set.
    """
    root = faces.path.parent.parent if faces.path.parent.name == "wider_face_split" else faces.path.parent
    for folder in (root / each for each in _FOLDERS):
        paths = {name: folder / f"wider_{name}_val.mat" for name in _LISTS}
        there = [path for path in paths.values() if path.exists()]
        if there and len(there) < len(paths):
            missing = next(path for path in paths.values() if path not in there)
            raise UserError(f"{missing}: not there, but {there[0].name} is; unpack eval_tools again")
        if there and "_val_" in faces.path.name:
            sizes = {photo.name: len(photo.boxes) for photo in faces.photos}
            return {name: _read(path, folder / "wider_face_val.mat", sizes) for name, path in paths.items()}
    return {}


def _read(path: Path, names_path: Path, sizes: dict[str, int]) -> dict[str, NDArray[np.int64]]:
    """By photo the numbers of the faces that count."""
    content = read_mat(path)
    names = content if "file_list" in content or not names_path.exists() else read_mat(names_path)
    events, files, lists = (
        _cells(path, names, "event_list"),
        _cells(path, names, "file_list"),
        _cells(path, content, "gt_list"),
    )
    counted: dict[str, NDArray[np.int64]] = {}
    try:
        for event, photos, faces in zip(events, files, lists, strict=True):
            for photo, numbers in zip(photos, faces, strict=True):
                counted[f"{event}/{photo}.jpg"] = np.asarray(numbers, np.float64).ravel().astype(np.int64) - 1
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: its lists do not fit each other; unpack eval_tools again") from error
    for name, numbers in counted.items():
        if name not in sizes or (len(numbers) and not 0 <= numbers.min() <= numbers.max() < sizes[name]):
            raise UserError(
                f"{path}: a face of {shown(name)} is not in the list of the set; they are of different sets"
            )
    return counted


def _cells(path: Path, content: dict[str, Any], name: str) -> list[Any]:
    found = content.get(name)
    if not isinstance(found, list):
        raise UserError(
            f"{path}: no cells {name!r}; expected a list of WIDER FACE's eval_tools, with wider_face_val.mat"
        )
    return found


def counted_faces(found: Sequence[Found], subsets: Subsets) -> dict[str, list[NDArray[np.bool_]]]:
    """By subset, for each photo which of its faces count, bool [n]; by size where there are no lists."""
    if subsets:
        return {name: [_marked(each.photo, mine) for each in found] for name, mine in subsets.items()}
    return {
        name: [~each.photo.ignored & (_heights(each) >= low) & (_heights(each) < high) for each in found]
        for name, (low, high) in _SCALES.items()
    }


def _marked(photo: AnnotatedPhoto, counted: dict[str, NDArray[np.int64]]) -> NDArray[np.bool_]:
    marks = np.zeros(len(photo.boxes), bool)
    marks[counted.get(photo.name, np.empty(0, np.int64))] = True
    return marks


def _heights(found: Found) -> NDArray[np.float32]:
    return np.asarray(found.photo.boxes[:, 3] - found.photo.boxes[:, 1], np.float32)
