"""A foreign output of `prep align`: its plan imports nothing and its queues stop no job but its own."""

import importlib
import inspect
import json
import pkgutil
import sys

import pyarrow as pa
import pytest

import data_prep
from data_prep.engines.slurm import stop_left_over
from data_prep.job.plan import COMPONENTS, JobFiles, JobPlan
from data_prep.sources.base import Source
from data_prep.transforms import Transform
from dist_train.errors import UserError
from tests.launch.recipes import headcount_here
from tests.prep.jobs import options, photos, run


@pytest.fixture
def out(tmp_path):
    """A job that is done but for its manifest."""
    run(tmp_path / "out", options(photos(tmp_path / "photos")))
    (tmp_path / "out" / "manifest.json").unlink()
    return tmp_path / "out"


def change(out, **entries):
    path = JobFiles(out).plan
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.mark.parametrize("part", ["source", "transform"])
@pytest.mark.parametrize("name", ["evil:Evil", "evil:Evil.inner", "os:system", "subprocess:Popen", "evil", "", 5, None])
def test_a_class_that_a_plan_names_is_not_imported(out, tmp_path, monkeypatch, part, name):
    (tmp_path / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'mark')!r})\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    described = json.loads(JobFiles(out).plan.read_text())["options"]
    change(out, options={**described, part: {"class": name, "path": "x", "args": ["x"]}})
    for command in (("prep", "resume", out), ("prep", "align", tmp_path / "photos", out, "--keep")):
        done = headcount_here(*command)
        assert done.returncode == 2, done.stderr
        assert "plan.json: options: class " in done.stderr
        assert "nothing was imported" in done.stderr
        assert done.stderr.count("\n") == 1
    assert not (tmp_path / "mark").exists()
    assert "evil" not in sys.modules


def test_every_source_and_transform_of_the_package_can_be_planned():
    for module in pkgutil.walk_packages(data_prep.__path__, "data_prep."):
        if module.name != "data_prep.mtcnn.convert":  # a program of its own, with requirements of its own
            importlib.import_module(module.name)
    found, todo = set(), [Source, Transform]
    while todo:
        kind = todo.pop()
        todo += kind.__subclasses__()
        if kind.__module__.startswith("data_prep.") and not inspect.isabstract(kind):
            found.add(f"{kind.__module__}:{kind.__qualname__}")
    assert found == set(COMPONENTS.values())


PLANS = {
    "another version": {"version": 2},
    "a version that is true": {"version": True},
    "no rows": {"rows": 0},
    "rows without end": {"rows": 1e999},
    "more units than there are": {"units": 10**9},
    "units that are text": {"units": "7"},
    "no options": {"options": None},
    "options of no job": {"options": {"a": 1}},
}


@pytest.mark.parametrize("kind", PLANS)
def test_a_plan_with_an_impossible_value_is_refused_in_one_line(out, kind):
    change(out, **PLANS[kind])
    done = headcount_here("prep", "resume", out)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "plan." in done.stderr


@pytest.mark.parametrize("content", [b"[" * 100_000, b"", b"5", b"\xff", b"{}"], ids=range(5))
def test_a_file_that_is_no_plan_is_refused_in_one_line(out, content):
    JobFiles(out).plan.write_bytes(content)
    done = headcount_here("prep", "resume", out)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1


def test_rows_that_point_behind_their_file_are_refused(out):
    path = JobFiles(out).rows
    file = pa.ipc.open_file(path)
    batches = [file.get_batch(number) for number in range(file.num_record_batches)]
    locations = batches[0].column(1)
    _, offsets, data = locations.buffers()
    wild = pa.py_buffer(bytes(offsets)[:4] + (1 << 30).to_bytes(4, "little") + bytes(offsets)[8:])
    column = pa.Array.from_buffers(pa.binary(), len(locations), [None, wild, data])
    columns = [column if number == 1 else batches[0].column(number) for number in range(5)]
    batches[0] = pa.RecordBatch.from_arrays(columns, schema=file.schema)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, file.schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    with pytest.raises(UserError, match=r"plan\.arrow: unit 0: "):
        JobPlan(JobFiles(out)).rows(0)


def test_no_job_but_its_own_is_stopped(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("data_prep.engines.slurm._slurm", lambda *command: asked.append(command) or "")
    for name in ("0123abcd", "x,training", "0123abcd,training", "..."):
        (tmp_path / name).mkdir()
    stop_left_over(tmp_path)
    assert {word for command in asked for word in command if "name=" in word} == {"--name=headcount-prep-0123abcd"}
    assert not (tmp_path / "0123abcd").exists()
