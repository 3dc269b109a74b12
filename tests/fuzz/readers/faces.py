"""Lists of faces, and the lists of WIDER FACE's subsets."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.io import savemat

from data_prep.faces.annotated import open_faces
from data_prep.faces.table import EDGES, POINTS
from data_prep.judge.subsets import read_subsets
from tests.data.sets import encode, picture
from tests.fuzz.formats import PARQUET
from tests.fuzz.mutations import BYTES, TEXT
from tests.fuzz.reader import Reader, Scene, each_target

_PHOTO = encode(picture(0, 16))
_FIVE = "4 5 9 5 6 7 4 9 9 9"
_WIDER = "wider_face_split/wider_face_val_bbx_gt.txt"


def _wider_files() -> dict[str, bytes]:
    flags = "0 0 0 0 0 0"
    lines = f"0--P/a.jpg\n2\n1 2 10 10 {flags}\n3 4 0 5 2 0 0 1 0 0\n0--P/b.jpg\n0\n0 0 0 0 {flags}\n"
    photos = {f"WIDER_val/images/0--P/{name}.jpg": _PHOTO for name in "ab"}
    return {_WIDER: lines.encode(), **photos}


def _lists() -> list[Scene]:
    head = ",".join(("path", *EDGES, *POINTS))
    table = f"{head}\na.jpg,1,2,12,13,{_FIVE.replace(' ', ',')}\nb.jpg{',' * 14}\n"
    celeba = {
        "Anno/list_bbox_celeba.txt": b"2\nimage_id x_1 y_1 width height\na.jpg 1 2 9 9\nb.jpg 0 0 0 0\n",
        "Anno/list_landmarks_celeba.txt": f"2\nlefteye_x\na.jpg {_FIVE}\nb.jpg {_FIVE}\n".encode(),
        "img_celeba/a.jpg": _PHOTO,
        "img_celeba/b.jpg": _PHOTO,
    }
    fold = "FDDB-folds/FDDB-fold-01-ellipseList.txt"
    fddb = {fold: b"2002/a\n1\n6.5 4.25 1.2 8 9  1\n", "originalPics/2002/a.jpg": _PHOTO}
    label = "# a.jpg\n1 2 10 10 4 5 0 9 5 0 6 7 0 4 9 1 9 9 1 0.8\n3 4 5 5\n# b.jpg\n"
    retinaface = {"label.txt": label.encode(), "images/a.jpg": _PHOTO, "images/b.jpg": _PHOTO}
    return [
        *each_target(_wider_files(), _WIDER),
        *each_target({"faces.csv": table.encode(), "a.jpg": _PHOTO, "b.jpg": _PHOTO}, "faces.csv"),
        *each_target(celeba, *(name for name in celeba if name.startswith("Anno"))),
        *each_target(fddb, fold),
        *each_target(retinaface, "label.txt"),
    ]


def _parquet() -> list[Scene]:
    columns = {"path": ["a.jpg", "a.jpg"], **{edge: [1.0 + at, 2.0 + at] for at, edge in enumerate(EDGES)}}
    sink = io.BytesIO()
    pq.write_table(pa.table(columns | {"ignored": [0, 1]}), sink)
    return each_target({"faces.parquet": sink.getvalue(), "a.jpg": _PHOTO}, "faces.parquet")


def _cells(*values: object) -> np.ndarray:
    made = np.empty((len(values), 1), object)
    made[:, 0] = values
    return made


def _subsets() -> list[Scene]:
    names = {"event_list": _cells("0--P"), "file_list": _cells(_cells("a", "b"))}
    counted = {"gt_list": _cells(_cells(np.ones((1, 1)), np.empty((0, 0))))}
    files = _wider_files()
    for name in ("easy", "medium", "hard", "face"):
        sink = io.BytesIO()
        savemat(sink, names if name == "face" else counted, do_compression=name == "medium")
        files[f"ground_truth/wider_{name}_val.mat"] = sink.getvalue()
    return each_target(files, *(name for name in files if name.endswith(".mat")))


def _read_subsets(home: Path) -> None:
    read_subsets(open_faces(home))


READERS = (
    Reader("prep: lists of faces", _lists, open_faces, TEXT),
    Reader("prep: parquet of faces", _parquet, open_faces, PARQUET, weight=0.5),
    Reader("prep: subsets of faces", _subsets, _read_subsets, BYTES),
)
