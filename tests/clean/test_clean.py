"""`headcount data clean` on a set with a fault of each kind: what it finds, what the new set has, what it refuses."""

import json
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from data_prep.clean.apply import apply_findings
from dist_train.clean.finding import read_exceptions, read_findings
from dist_train.clean.job import Asked, look_through
from dist_train.data.manifest import load_manifest
from dist_train.errors import UserError, WorkError
from dist_train.evaluate.judging import Judging
from dist_train.evaluate.models import Model, load_model
from dist_train.evaluate.sets import StoredSet
from dist_train.runtime.ranks import ALONE
from launch.clean_cli import thresholds
from tests.clean.sets import PEOPLE, SIZE, VIEWS, faulty_set
from tests.data.sets import encode, make_set
from tests.embed.models import write_model
from tests.sets import picture

# So few identities give no thresholds of their own, and their pictures differ by a little noise alone.
GIVEN = {"outlier": -0.05, "merge": 2.0, "duplicate": 0.99, "test": 0.99}


def opened(folder: Path) -> tuple[Model, Judging]:
    model = load_model(write_model(folder / "model.onnx", SIZE), torch.device("cpu"))
    return model, Judging(model.embed, model.image_size, 64, ALONE, False)


class Found:
    """A faulty set, and what was found in it."""

    def __init__(self, folder: Path) -> None:
        self.set, self.out = faulty_set(folder / "set"), folder / "found"
        test = [encode(picture(5, 2, SIZE), ".jpg"), encode(picture(70, 0, SIZE), ".png")]
        (folder / "test.bin").write_bytes(pickle.dumps((test, [False]), protocol=2))
        self.model, self.how = opened(folder)
        asked = Asked(self.set, None, [folder / "test.bin"], self.out, 0.95, GIVEN)
        self.told = look_through(asked, self.model, self.how, ALONE)
        self.path = self.out / "findings.parquet"
        self.rows = pq.read_table(self.path).to_pylist()
        self.manifest = load_manifest(self.set)

    def of(self, kind: str) -> list[dict]:
        return [row for row in self.rows if row["kind"] == kind]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return Found(tmp_path_factory.mktemp("clean"))


def samples_of(folder: Path) -> dict[str, tuple[int, bytes, dict]]:
    with StoredSet(folder) as samples:
        every = [samples.sample(number) for number in range(len(samples))]
    return {each.key: (each.label, each.image.tobytes(), each.record) for each in every}


def test_each_kind_of_fault_is_found_with_its_evidence(found):
    assert [row["keys"] for row in found.of("outlier")] == [["wrong"]]
    outlier = found.of("outlier")[0]
    assert (outlier["labels"], outlier["near_label"], outlier["names"]) == ([1], 0, ["person 1"])
    assert outlier["near_cosine"] > outlier["cosine"]
    assert [set(row["labels"]) for row in found.of("merge")] == [{3, PEOPLE}]
    assert [set(row["keys"]) for row in found.of("duplicate")] == [{"copy", "p02-0"}]
    assert [row["keys"] for row in found.of("test")] == [["p05-2"]]
    assert "4 findings" in found.told
    assert "test" in found.told


def test_the_new_set_has_the_same_bytes_without_what_was_found(found, tmp_path):
    cleaned = apply_findings(found.set, found.path, tmp_path / "new", None, quiet=True)
    before, after = samples_of(found.set), samples_of(tmp_path / "new")
    gone = {"wrong", "p05-2", found.of("duplicate")[0]["keys"][0]}
    assert set(after) == set(before) - gone
    assert all(after[key][1:] == before[key][1:] for key in after)
    assert all(after[key][0] == (3 if before[key][0] == PEOPLE else before[key][0]) for key in after)
    manifest = load_manifest(tmp_path / "new")
    table = pq.read_table(tmp_path / "new" / "identities.parquet").to_pydict()
    assert manifest.num_classes == PEOPLE
    assert table["count"] == np.bincount([label for label, _, _ in after.values()]).tolist()
    assert (table["name"][3], table["group"][:2]) == ("person 3", ["b", "a"])
    assert (cleaned.joined, cleaned.pictures) == (1, PEOPLE * VIEWS - 1)
    assert json.loads((tmp_path / "new" / "cleaned.json").read_text())["left_out"] == {
        "outlier": 1,
        "duplicate": 1,
        "test": 1,
    }


def test_further_columns_of_identities_are_carried_as_they_are_and_measured_before_they_are_unpacked(found, tmp_path):
    shutil.copytree(found.set, tmp_path / "set")
    path = tmp_path / "set" / "identities.parquet"
    table = pq.read_table(path)
    vectors = pa.array([[float(row)] * 512 for row in range(table.num_rows)], pa.list_(pa.float32()))
    further = table.append_column("vector", vectors).append_column("kind", table["group"].dictionary_encode())
    pq.write_table(further.replace_schema_metadata({"made": "by hand"}), path)
    apply_findings(tmp_path / "set", found.path, tmp_path / "new", None, quiet=True)
    after, before = pq.read_table(tmp_path / "new" / "identities.parquet"), pq.read_table(path).slice(0, PEOPLE)
    assert after.schema.metadata == before.schema.metadata
    for name in set(before.column_names) - {"label", "count"}:
        assert after[name].to_pylist() == before[name].to_pylist(), name
        assert after.schema.field(name).type == before.schema.field(name).type
    wide = pa.table({f"x{number}": ["x" * (3 << 20)] * table.num_rows for number in range(2)})
    for name in wide.column_names:
        table = table.append_column(name, wide[name])
    pq.write_table(table, path, compression="zstd")
    assert path.stat().st_size < 50_000
    with pytest.raises(UserError, match=r"identities\.parquet: cannot be read: more than .* bytes in 13 rows"):
        apply_findings(tmp_path / "set", found.path, tmp_path / "again", None, quiet=True)
    assert not (tmp_path / "again").exists()


def test_what_is_struck_out_on_the_sheet_is_not_applied(found, tmp_path):
    page = (found.out / "sheet.html").read_text()
    assert re.search(r'(?:src|href)="(?!data:)|//\w+\.\w', page) is None, "it loads nothing"
    assert page.count("data:image/jpeg;base64,") > 15
    digest = re.search(r'const findings = "(\w+)"', page).group(1)
    numbers = [int(number) for number in re.findall(r'data-number="(\d+)"', page)]
    assert numbers == [row["number"] for row in found.rows]
    struck_out = [found.of("merge")[0]["number"], found.of("outlier")[0]["number"]]
    (tmp_path / "exceptions.json").write_text(json.dumps({"findings": digest, "except": struck_out}))
    cleaned = apply_findings(found.set, found.path, tmp_path / "new", tmp_path / "exceptions.json", quiet=True)
    assert (cleaned.struck_out, cleaned.joined, cleaned.identities) == (2, 0, PEOPLE + 1)
    assert "wrong" in samples_of(tmp_path / "new")


def test_names_are_text_on_the_sheet(tmp_path):
    folder = faulty_set(tmp_path / "set")
    table = pq.read_table(folder / "identities.parquet")
    names = pa.array(["<script>alert(1)</script>"] * table.num_rows)
    pq.write_table(table.set_column(1, "name", names), folder / "identities.parquet")
    model, how = opened(tmp_path)
    look_through(Asked(folder, None, [], tmp_path / "out", 0.95, GIVEN), model, how, ALONE)
    assert "<script>alert" not in (tmp_path / "out" / "sheet.html").read_text()


def test_findings_of_another_set_are_refused(found, tmp_path):
    other = make_set(tmp_path / "other", [20])
    with pytest.raises(UserError, match=r"findings\.parquet: are of another set: digest \w{12}, the set has"):
        apply_findings(tmp_path / "other", found.path, tmp_path / "new", None)
    assert other.digest
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["", "inside", ".."])
def test_a_set_is_not_written_over_nor_into(found, name):
    with pytest.raises(UserError, match=r"OUT .*(is the set .* itself|lie in one another)"):
        apply_findings(found.set, found.path, found.set / name, None)
    with pytest.raises(UserError, match=r"--out .*(is the set .* itself|lie in one another)"):
        look_through(Asked(found.set, None, [], found.set / name, 0.95, {}), found.model, found.how, ALONE)


def test_a_directory_that_is_in_use_is_refused(found, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="holds something already"):
        apply_findings(found.set, found.path, tmp_path, None)


def changed(found: Found, path: Path, **columns: list) -> Path:
    table = pq.read_table(found.path)
    for name, values in columns.items():
        at = table.column_names.index(name)
        table = table.set_column(at, table.schema.field(name), pa.array(values, table.schema.field(name).type))
    pq.write_table(table, path)
    return path


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"rows": [[99], [], [50, 0], [1]]}, "a picture that the set of 74 does not have"),
        ({"labels": [[99], [3, 12], [2, 2], [5]]}, "a label that the set of 13 identities does not have"),
        ({"labels": [[None], [3, 12], [2, 2], [5]]}, "a label that the set of 13"),
        ({"kind": ["outlier", "merge", "duplicate", "rm"]}, "kind 'rm', expected one of"),
        ({"rows": [[1, 2], [], [50, 0], [1]]}, "2 pictures and 1 labels, a finding of kind outlier has"),
    ],
)
def test_findings_that_this_set_cannot_have_are_refused(found, tmp_path, columns, message):
    path = changed(found, tmp_path / "findings.parquet", **columns)
    with pytest.raises(UserError, match=message):
        read_findings(path, found.manifest.digest, found.manifest.samples, found.manifest.num_classes)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("kind", ["x" * (20 << 20)] * 4, "column kind: 83,886,080 bytes in 4 rows"),
        ("rows", [[7] * 1_000_000] * 4, "4,000,000 values in 4 rows"),
    ],
)
def test_small_findings_that_hold_very_much_are_refused_before_they_are_unpacked(
    found, tmp_path, column, values, message
):
    path = changed(found, tmp_path / "findings.parquet", **{column: values})
    pq.write_table(pq.read_table(path), path, compression="zstd", dictionary_pagesize_limit=1 << 30)
    assert path.stat().st_size < 200_000
    with pytest.raises(UserError, match=rf"findings {path}: cannot be read: .*{message}"):
        read_findings(path, found.manifest.digest, found.manifest.samples, found.manifest.num_classes)


def test_findings_with_another_label_than_the_set_has_are_refused(found, tmp_path):
    path = changed(found, tmp_path / "findings.parquet", labels=[[4], [3, 12], [2, 2], [5]])
    with pytest.raises(UserError, match=r"says label 4 of picture 20, the set has 1"):
        apply_findings(found.set, path, tmp_path / "new", None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PAR1", "cannot be read"),
        (b"", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
    ],
)
def test_files_that_are_no_findings_or_exceptions_are_refused(found, tmp_path, content, message):
    path = tmp_path / "file"
    path.write_bytes(content)
    manifest = found.manifest
    with pytest.raises(UserError, match=f"findings .*{message}"):
        read_findings(path, manifest.digest, manifest.samples, manifest.num_classes)
    findings = read_findings(found.path, manifest.digest, manifest.samples, manifest.num_classes)
    with pytest.raises(UserError, match=f"--except .*{message}"):
        read_exceptions(path, findings)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"findings": "other", "except": [0]}, "a list for other findings"),
        ({"findings": None, "except": [4]}, "finding 4, there are 4"),
        ({"findings": None, "except": [True]}, "no list of numbers"),
        ({"except": []}, "cannot be read"),
    ],
)
def test_exceptions_of_other_findings_are_refused(found, tmp_path, body, message):
    manifest = found.manifest
    findings = read_findings(found.path, manifest.digest, manifest.samples, manifest.num_classes)
    if body.get("findings", "") is None:
        body["findings"] = findings.digest
    (tmp_path / "exceptions.json").write_text(json.dumps(body))
    with pytest.raises(UserError, match=message):
        read_exceptions(tmp_path / "exceptions.json", findings)


def test_findings_that_take_every_picture_leave_no_set(found, tmp_path):
    path, count = tmp_path / "all.parquet", found.manifest.samples
    with StoredSet(found.set) as samples:
        labels, _ = samples.labels_and_roles()
    table = pq.read_table(found.path)
    row = table.slice(0, 1).to_pylist()[0]
    rows = [{**row, "rows": [number], "labels": [int(labels[number])]} for number in range(count)]
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)
    with pytest.raises(WorkError, match="no picture would stay"):
        apply_findings(found.set, path, tmp_path / "new", None)


def test_a_set_of_one_identity_is_refused(found, tmp_path):
    make_set(tmp_path / "set", [6], num_classes=1)
    with pytest.raises(UserError, match=r"set .*: has one identity; what is wrong in it shows only beside others"):
        look_through(Asked(tmp_path / "set", None, [], tmp_path / "out", 0.95, {}), found.model, found.how, ALONE)


def test_an_empty_test_set_is_refused_before_anything_is_written(found, tmp_path):
    (tmp_path / "empty.bin").write_bytes(pickle.dumps(([], []), protocol=2))
    asked = Asked(found.set, None, [tmp_path / "empty.bin"], tmp_path / "out", 0.95, {})
    with pytest.raises(UserError, match="it is empty"):
        look_through(asked, found.model, found.how, ALONE)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["outlier", "outlier=", "outlier=nan", "face=1", "merge=1,2"])
def test_thresholds_that_are_none_are_refused(text):
    with pytest.raises(UserError, match=f"--threshold {text}: expected KIND=NUMBER"):
        thresholds([text])
