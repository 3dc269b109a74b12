"""Sets for evaluation: `.bin` files, IJB's lists; figures that thresholds are taken from."""

import json
import pickle
from functools import lru_cache
from pathlib import Path

import numpy as np

from dist_train.evaluate.bin import read_bin
from dist_train.evaluate.calibration import Owner, read_calibration, stated_calibration
from dist_train.evaluate.ijb_layout import read_layout, read_pairs, read_subjects
from tests.data.sets import encode, picture
from tests.evaluate.figures import figures, point
from tests.fuzz.formats import JSON, PICKLE
from tests.fuzz.mutations import TEXT
from tests.fuzz.reader import Reader, Scene, each_target


@lru_cache
def _bins() -> list[Scene]:
    shots = [encode(picture(n, 16)) for n in range(4)]
    arrays = [np.frombuffer(shot, np.uint8) for shot in shots]
    bodies = [
        pickle.dumps((shots, [True, False]), protocol=4),
        pickle.dumps((shots, [True, False]), protocol=2),
        pickle.dumps((shots, [True, False]), protocol=0),
        pickle.dumps((arrays, np.array([True, False])), protocol=4),
        pickle.dumps(([array[:, None] for array in arrays], [1, 0]), protocol=5),
        pickle.dumps((arrays, [np.bool_(True), np.bool_(False)]), protocol=2),
    ]
    return [Scene({"x.bin": body}, "x.bin") for body in bodies]


def _ijb() -> list[Scene]:
    names = [f"{n}.jpg" for n in range(4)]
    points = b" ".join(b"%d.5" % n for n in range(10))
    files = {
        "ijbc_name_5pts_score.txt": b"".join(b"%s %s 0.9\n" % (name.encode(), points) for name in names),
        "ijbc_face_tid_mid.txt": b"".join(b"%s %d %d\n" % (name.encode(), n // 2, n) for n, name in enumerate(names)),
        "ijbc_template_pair_label.txt": b"0 1 0\n0 0 1\n1 1 1\n",
        "ijbc_1N_gallery_G1.csv": b"TEMPLATE_ID,SUBJECT_ID,FILENAME\n0,5,a\n",
        "ijbc_1N_probe_mixed.csv": b"TEMPLATE_ID,SUBJECT_ID,FILENAME\n0,5,a\n1,6,b\n",
    }
    files = {f"meta/{name}": data for name, data in files.items()}
    return each_target(files, *files)


def _read_ijb(home: Path) -> None:
    layout = read_layout(home)
    read_pairs(layout)
    for name in ("gallery_G1", "probe_mixed"):
        read_subjects(layout, name)


def _figures() -> list[Scene]:
    points = [point(1e-2, 0.25), point(1e-4, None, fnmr_95=[None, None], resolved=False)]
    body = [figures(digest * 64, points) for digest in "ab"]
    return [Scene({"f.json": json.dumps(body).encode()}, "f.json")]


def _read_figures(home: Path) -> None:
    owner = Owner("m", "a" * 64)
    found = read_calibration(home / "f.json", owner)
    found.at(1e-2)
    stated_calibration(found.to_text(), owner)


READERS = (
    Reader("figures.json", _figures, _read_figures, JSON),
    Reader("verification .bin", _bins, lambda home: read_bin(home / "x.bin"), PICKLE, weight=2),
    Reader("IJB lists", _ijb, _read_ijb, TEXT, weight=2),
)
