"""Market-1501, pictures of people by six cameras (Zheng et al., ICCV 2015), and sets that are laid out like it."""

import re
from pathlib import Path

from data_prep.layouts.layout import GALLERY, PROBE, TEST, TRAIN, Contents, Entry, Layout, fields_of, pictures_in

_NAME = re.compile(r"(-1|[0-9]{4,5})_c([0-9]+)s?([0-9]*)_?.*\.(?:jpg|png)")
_JUNK, _STRANGERS = "-1", frozenset({"0000", "00000"})
_PARTS = (("bounding_box_train", TRAIN, None), ("query", TEST, PROBE), ("bounding_box_test", TEST, GALLERY))


def read_market(folder: Path) -> Contents:
    """`PPPP_cCsS_...`: person, camera and sequence. Person -1 is junk and left out; 0000 stands for many strangers.

    Each stranger is an identity of its own, since two pictures of them show no one person.
    """
    entries, junk = [], 0
    for below, part, role in _PARTS:
        for path in pictures_in(folder, below):
            person, camera, _ = fields_of(_NAME, path, "0002_c1s1_000451_03.jpg").groups()
            if person == _JUNK:
                junk += 1
                continue
            if person in _STRANGERS:
                person = path.rpartition("/")[2].rpartition(".")[0]
            entries.append(Entry(path, person, part, role, {"camera": int(camera)}))
    return Contents(entries, left_out={"pictures of nobody (-1)": junk} if junk else {})


MARKET = Layout("market", tuple(below for below, _, _ in _PARTS), read_market)
