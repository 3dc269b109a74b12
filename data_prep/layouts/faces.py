"""Sets of faces: TinyFace, CFP, AgeDB, XQLFW, RFW."""

import logging
import re
from itertools import chain
from pathlib import Path

from data_prep.layouts.age_pairs import FOLDS, YEARS, Aged, pairs_by_age
from data_prep.layouts.layout import (
    GALLERY,
    PROBE,
    TEST,
    TRAIN,
    Contents,
    Entry,
    Layout,
    fields_of,
    folders_in,
    inside,
    of_folders,
    pictures_in,
    rows_of,
)
from dist_train.data.pair_list import Pair, read_lines, read_pairs
from dist_train.errors import UserError

logger = logging.getLogger(__name__)

_TINY = re.compile(r"([0-9]+)_.*")
_AGED = re.compile(r"([0-9]+)_(.+)_([0-9]{1,3})_([fm])\.jpg")
AGEDB_FORM = "0_MariaCallas_35_f.jpg"


def read_tinyface(folder: Path) -> Contents:
    """TinyFace (Cheng, Zhu, Gong, ACCV 2018): probes and a gallery `ID_N.jpg`, and strangers in the gallery.

    Each stranger is an identity of its own.
    """
    test = "Testing_Set"
    entries = of_folders(folder, "Training_Set", TRAIN) if (folder / "Training_Set").is_dir() else []
    for below, role in ((f"{test}/Probe", PROBE), (f"{test}/Gallery_Match", GALLERY)):
        for path in pictures_in(folder, below):
            entries.append(Entry(path, fields_of(_TINY, path, "12_1.jpg")[1], TEST, role))
    strangers = pictures_in(folder, f"{test}/Gallery_Distractor")
    return Contents(entries + [Entry(p, f"stranger {p.rpartition('/')[2]}", TEST, GALLERY) for p in strangers])


def read_cfp(folder: Path) -> Contents:
    """CFP (Sengupta et al., WACV 2016): lists of frontal and of profile pictures, and ten folds of pairs of them.

    `Protocol/Split/FP/01/same.txt` has lines `i,j`: the i-th frontal and the j-th profile picture; both are frontal in
    `Split/FF`.
    """
    protocol = "Protocol"
    listed: dict[str, dict[str, str]] = {}
    for pose in ("F", "P"):
        name = f"{protocol}/Pair_list_{pose}.txt"
        listed[pose] = {number: inside(at, protocol, path) for at, (number, path) in rows_of(folder / name, 2)}
    poses = (("F", "frontal"), ("P", "profile"))
    entries = [
        Entry(path, _person(folder, path), TEST, None, {"pose": pose})
        for short, pose in poses
        for path in listed[short].values()
    ]
    pairs = {}
    for kind in ("FF", "FP"):
        split = f"{protocol}/Split/{kind}"
        left, right = (listed[pose] for pose in kind)
        pairs[f"cfp_{kind.lower()}"] = list(
            chain.from_iterable(
                _fold(folder / split / fold / f"{name}.txt", left, right, same)
                for fold in folders_in(folder, split)
                for name, same in (("same", True), ("diff", False))
            )
        )
    return Contents(entries, pairs)


def _person(folder: Path, path: str) -> str:
    """The identity of a picture `Data/Images/001/frontal/01.jpg`."""
    *_, person, _, _ = ("", "", *path.split("/"))
    if not person:
        raise UserError(f"{folder}: {path!r}; expected a path such as Data/Images/001/frontal/01.jpg")
    return person


def _fold(path: Path, left: dict[str, str], right: dict[str, str], same: bool) -> list[Pair]:
    pairs = []
    for where, (line,) in rows_of(path, 1):
        one, _, other = line.partition(",")
        if one not in left or other not in right:
            raise UserError(f"{where}: {line!r}; expected the numbers of two listed pictures, as `12,7`")
        pairs.append(Pair(left[one], right[other], same))
    return pairs


def read_agedb(folder: Path) -> Contents:
    """AgeDB (Moschoglou et al., CVPRW 2017): `N_Name_Age_gender.jpg`, and pairs 30 years apart, which are drawn here.

    The list of pairs that its authors drew is not part of the folder.
    """
    entries, pictures = [], []
    for path in pictures_in(folder, "."):
        _, name, age, gender = fields_of(_AGED, path, AGEDB_FORM).groups()
        entries.append(Entry(path, name, TEST, None, {"age": int(age), "gender": gender}))
        pictures.append(Aged(path, name, int(age)))
    pairs = pairs_by_age(pictures)
    if not pairs:
        logger.warning("%s: too few pictures %d years apart for %d folds of pairs: none are made", folder, YEARS, FOLDS)
    return Contents(entries, {"agedb_30_drawn": pairs} if pairs else {})


def read_xqlfw(folder: Path) -> Contents:
    """XQLFW (Knoche, Hormann, Rigoll, FG 2021): LFW's pictures at other qualities, and a list of LFW's form."""
    pairs = read_pairs(folder / "xqlfw_pairs.txt")
    root = _pictures_of(folder, pairs[0].left)
    entries = of_folders(folder, root, TEST)
    return Contents(entries, {"xqlfw": [_under(root, pair) for pair in pairs]})


def _pictures_of(folder: Path, first: str) -> str:
    """The folder, at most two below `folder`, in which the first picture of a list lies."""
    below = [".", *(name for name in folders_in(folder, "."))]
    below += [f"{one}/{two}" for one in below[1:] for two in folders_in(folder, one)]
    found = [each for each in below if (folder / each / f"{first}.jpg").is_file()]
    if len(found) != 1:
        told = f"in {' and in '.join(found)}; move one of them away" if found else "nowhere in it; unpack them there"
        raise UserError(f"{folder}: the pictures of the list, such as {first}.jpg, are {told}")
    return found[0]


def read_rfw(folder: Path) -> Contents:
    """RFW (Wang et al., ICCV 2019): four groups of people, each with pictures `data/GROUP/ID/` and a list of pairs."""
    top = "test" if (folder / "test" / "txts").is_dir() else "."
    entries, pairs = [], {}
    for group in folders_in(folder, f"{top}/txts"):
        below = f"{top}/data/{group}"
        entries += of_folders(folder, below, TEST, {"group": group})
        listed = read_lines(folder / top / "txts" / group / f"{group}_pairs.txt")
        pairs[f"rfw_{group.lower()}"] = [_under(below, pair) for pair in listed]
    return Contents(entries, pairs)


def _under(root: str, pair: Pair) -> Pair:
    left, right = (inside("a list of pairs", root, f"{photo}.jpg") for photo in (pair.left, pair.right))
    return Pair(left, right, pair.same)


TINYFACE = Layout("tinyface", ("Testing_Set",), read_tinyface)
CFP = Layout("cfp", ("Protocol/Pair_list_F.txt", "Protocol/Pair_list_P.txt"), read_cfp)
AGEDB = Layout("agedb", (AGEDB_FORM,), read_agedb)
XQLFW = Layout("xqlfw", ("xqlfw_pairs.txt",), read_xqlfw)
RFW = Layout("rfw", ("txts", "test/txts"), read_rfw)
