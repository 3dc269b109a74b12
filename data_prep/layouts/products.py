"""Sets of products: Stanford Online Products, In-shop Clothes, and any folder of folders."""

import os
from pathlib import Path

from data_prep.layouts.layout import (
    ALL,
    GALLERY,
    PROBE,
    SUFFIXES,
    TEST,
    TRAIN,
    Contents,
    Entry,
    Layout,
    folders_in,
    inside,
    of_folders,
    pictures_in,
    rows_of,
)
from dist_train.errors import UserError

_STATUSES = {"train": (TRAIN, None), "query": (TEST, PROBE), "gallery": (TEST, GALLERY)}
_INSHOP_LISTS = ("list_eval_partition.txt", "Eval/list_eval_partition.txt", "Anno/list_eval_partition.txt")


def read_sop(folder: Path) -> Contents:
    """Stanford Online Products (Song, Xiang, Jegelka, Savarese, CVPR 2016): `image_id class_id super_class_id path`."""
    entries = []
    for part, name in ((TRAIN, "Ebay_train.txt"), (TEST, "Ebay_test.txt")):
        for where, (_, product, kind, path) in rows_of(folder / name, 4, lambda words: words[0] == "image_id"):
            entries.append(Entry(inside(where, "", path), product, part, None, {"super_class": kind}))
    return Contents(entries)


def read_inshop(folder: Path) -> Contents:
    """In-shop Clothes Retrieval of DeepFashion (Liu et al., CVPR 2016): `image_name item_id evaluation_status`.

    The first line is the number of pictures, the second the names of the columns.
    """
    listed = next((folder / name for name in _INSHOP_LISTS if (folder / name).is_file()), folder / _INSHOP_LISTS[0])
    base = "" if (folder / "img").is_dir() else "Img"
    entries = []
    for where, (path, item, status) in rows_of(listed, 3, lambda words: len(words) == 1 or words[0] == "image_name"):
        if status not in _STATUSES:
            raise UserError(f"{where}: status {status!r}, expected one of {', '.join(_STATUSES)}")
        part, role = _STATUSES[status]
        entries.append(Entry(inside(where, base, path), item, part, role))
    return Contents(entries)


def read_folders(folder: Path) -> Contents:
    """A folder with a folder of pictures for each identity; pictures at other depths are left out."""
    loose = len(pictures_in(folder, "."))
    deeper = sum(_deeper(folder / identity) for identity in folders_in(folder, "."))
    left_out = {"pictures in no identity's folder": loose, "pictures deeper than an identity's folder": deeper}
    return Contents(of_folders(folder, ".", ALL), left_out={what: count for what, count in left_out.items() if count})


def _deeper(identity: Path) -> int:
    """Number of pictures in the folders that an identity's folder has."""
    count = 0
    for here, folders, names in os.walk(identity):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if here != str(identity):
            count += sum(name.lower().endswith(SUFFIXES) and not name.startswith(".") for name in names)
    return count


SOP = Layout("sop", ("Ebay_train.txt", "Ebay_test.txt"), read_sop)
INSHOP = Layout("inshop", _INSHOP_LISTS, read_inshop)
FOLDERS = Layout("folders", (), read_folders)
