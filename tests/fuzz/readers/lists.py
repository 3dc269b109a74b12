"""Lists of pairs and of people, as `prep pairs` and `prep align --identities` take them."""

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.sources.name_list import read_names
from dist_train.data.pair_list import read_pairs
from tests.fuzz.formats import PARQUET
from tests.fuzz.mutations import TEXT
from tests.fuzz.reader import Reader, Scene, each_target


def _pairs() -> list[Scene]:
    folds = b"2\t1\nann\t1\t2\nann\t1\tbob\t3\nbob\t1\t2\nann\t2\tbob\t1\n"
    table = b"left,right,same\na/1.jpg,a/2.jpg,1\na/1.jpg,\xc3\xa9/2.jpg,false\n"
    view1 = b"2\nann\t1\t2\nbob\t1\t2\nann\t1\tbob\t3\nann\t2\tbob\t1\n"
    texts = {"pairs.txt": folds, "dev.txt": view1, "pairs.csv": table}
    return [scene for name, text in texts.items() for scene in each_target({name: text}, name)]


def _parquet_pairs() -> list[Scene]:
    sink = io.BytesIO()
    pq.write_table(pa.table({"left": ["a", "b"], "right": ["c", "d"], "same": [True, False]}), sink)
    return each_target({"pairs.parquet": sink.getvalue()}, "pairs.parquet")


def _people() -> list[Scene]:
    texts = {"people.txt": b"2\nann\t2\nbob\t1\n", "names.txt": b"ann\n\xc3\xa9va\n"}
    return [scene for name, text in texts.items() for scene in each_target({name: text}, name)]


def _only(home: Path) -> Path:
    (path,) = home.iterdir()
    return path


READERS = (
    Reader("prep: pair lists", _pairs, lambda home: read_pairs(_only(home)), TEXT),
    Reader("prep: parquet of pairs", _parquet_pairs, lambda home: read_pairs(_only(home)), PARQUET, weight=0.5),
    Reader("prep: people", _people, lambda home: read_names(_only(home)), TEXT),
)
