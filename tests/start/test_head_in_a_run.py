"""A whole run whose head starts from another run: said in its figures and its summary, and not read on a resume."""

import json
import shutil

from dist_train.config import load_config
from dist_train.train.run import run
from launch.check import check
from tests.launch.recipes import write_recipe
from tests.sets import write_set
from tests.start.runs import write_names


def test_a_run_starts_its_head_from_another_as_a_check_says_and_resumes_without_it(tmp_path, capsys):
    for name, classes, first in (("old", 4, 0), ("grown", 5, 1)):
        write_set(tmp_path / name, classes=classes, views=6)
        write_names(tmp_path / name, [f"p{number}" for number in range(first, first + classes)])
    short = {"train__steps": 1, "train__global_batch_size": 24, "data__cache_dir": str(tmp_path / "cache")}
    recipe = write_recipe(tmp_path / "old.yaml", tmp_path / "old", tmp_path / "first", **short)
    assert run(load_config(recipe), resume=False) == 0
    more = {"start__from": str(tmp_path / "first")}
    recipe = write_recipe(tmp_path / "new.yaml", tmp_path / "grown", tmp_path / "second", **short, **more)
    check(load_config(recipe))
    assert "first: identities carried 3, new 2, gone 1" in capsys.readouterr().out
    assert run(load_config(recipe), resume=False) == 0
    expected = {"carried": 3, "new": 2, "gone": 1, "bad_pictures": 0, "without_pictures": 0}
    assert json.loads((tmp_path / "second" / "summary.json").read_text())["start"] == expected
    shutil.rmtree(tmp_path / "first")
    assert run(load_config(recipe), resume=True) == 0
    assert json.loads((tmp_path / "second" / "summary.json").read_text())["start"] == expected
