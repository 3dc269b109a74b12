"""A foreign run directory is as safe as a foreign `.bin`: nothing it holds is run, by whichever command reads it."""

import collections
import enum
import io
import json
import os
import pickle
import re
import shutil
import zipfile

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex

from dist_train.checkpoint.load import load_backbone
from dist_train.checkpoint.metadata import read_metadata
from dist_train.checkpoint.store import committed_checkpoints, damage, read_progress
from dist_train.errors import WorkError
from tests.embed.models import write_photos
from tests.launch.recipes import headcount_here
from tests.security.payloads import Attack, change_metadata, seal
from tests.sets import write_set
from tests.single import trainer


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A run that ended early, its recipe, photos, and a gallery of them."""
    home = tmp_path_factory.mktemp("sound")
    write_set(home / "set")
    write_photos(home / "photos")
    made = trainer(home, home / "set", train__steps=2, checkpoint__every_steps=2, checkpoint__keep=1)
    assert made.fit()
    made.close()
    for words in (
        ("embed", home / "run", home / "photos", home / "faces.parquet"),
        ("search", "build", home / "faces.parquet", home / "gallery"),
    ):
        done = headcount_here(*words)
        assert done.returncode == 0, done.stderr
    return home


@pytest.fixture
def run_dir(sound, tmp_path):
    """A copy of the run, to be changed."""
    return shutil.copytree(sound / "run", tmp_path / "run")


def newest(run_dir):
    return committed_checkpoints(run_dir)[-1]


COMMANDS = {
    "train": lambda home, run: ("train", home / "recipe.yaml", f"run_dir={run}", "--resume", "--allow-changes"),
    "eval": lambda home, run: ("eval", run, "-s", home / "set"),
    "export": lambda home, run: ("export", run),
    "embed": lambda home, run: ("embed", run, home / "photos", run / "new.parquet"),
    "search": lambda home, run: ("search", "query", home / "gallery", home / "photos" / "alone.png", "--model", run),
    "inspect": lambda home, run: ("checkpoint", "inspect", run),
    "weights": lambda home, run: ("checkpoint", "export", run, "-o", run / "weights.pt", "--centers"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_code_in_a_checkpoint_is_named_and_not_run_by_any_command(sound, run_dir, tmp_path, command):
    change_metadata(newest(run_dir), lambda body: [body, Attack(tmp_path / "mark")])
    done = headcount_here(*COMMANDS[command](sound, run_dir))
    assert done.returncode == 1, done.stderr
    assert re.search(r"\.metadata: its pickle calls posix\.mkdir, which no checkpoint needs", done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "mark").exists()


def test_torch_itself_would_run_it(run_dir, tmp_path):
    change_metadata(newest(run_dir), lambda body: setattr(body, "planner_data", Attack(tmp_path / "mark")))
    FileSystemReader(newest(run_dir)).read_metadata()
    assert (tmp_path / "mark").exists()


def first(body):
    """The first tensor of a checkpoint, its place, and its entry."""
    index = next(iter(body.storage_data))
    return index, body.storage_data[index], body.state_dict_metadata[index.fqn]


def place(**changes):
    def change(body):
        index, info, _ = first(body)
        body.storage_data[index] = _StorageInfo(**{**vars(info), **changes})

    return change


def entry(name, value):
    def change(body):
        setattr(first(body)[2], name, value)

    return change


def object_entry(body):
    index, info, _ = first(body)
    body.state_dict_metadata[index.fqn] = BytesStorageMetadata()
    body.storage_data[MetadataIndex(index.fqn)] = info


BAD = {
    "a path that leads out": (place(relative_path="../../x"), "name '../../x' leads to another directory"),
    "an absolute path": (place(relative_path="/etc/passwd"), "name '/etc/passwd' leads to another directory"),
    "a name with a NUL": (place(relative_path="a\0b"), r"name 'a\\x00b' has control characters"),
    "a name with a backslash": (place(relative_path="..\\x"), r"leads to another directory"),
    "no name": (place(relative_path=""), "name '' is empty"),
    "a name that is none": (place(relative_path=[1]), "name list is not text"),
    "a place behind the end": (place(offset=1 << 40), "ends at byte .* which has"),
    "a place before the begin": (place(offset=-1), "is at -1"),
    "a length that is none": (place(length=1.5), "is at 1.5"),
    "compressed tensors": (place(transform_descriptors=["stream.zstd/1"]), "is compressed"),
    "a size beyond the data": (entry("size", torch.Size([1 << 40])), "do not make up|is outside of"),
    "a size of many dimensions": (entry("size", torch.Size([1] * 60)), "a size of tuple"),
    "a size that is none": (entry("size", "big"), "a size of .* is 'big'"),
    "no shares": (entry("chunks", []), "the 0 shares of .* do not make up"),
    "an entry that is no tensor": (object_entry, "expected a tensor"),
    "no tensors": (lambda body: setattr(body, "state_dict_metadata", {}), "its list of tensors is dict"),
    "something else": (lambda body: {"a": 1}, "all of it.* is dict"),
    "a name of torch that is a function": (lambda body: torch.load, "torch.serialization.load"),
    "a name of Python": (lambda body: setattr, "builtins.setattr"),
    "a number of no end": (lambda body: place(offset=10**5000)(body), "is at a number of"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_checkpoint_that_lies_is_refused_with_what_is_wrong(run_dir, kind):
    change, found = BAD[kind]
    change_metadata(newest(run_dir), change)
    with pytest.raises(WorkError, match=rf"(?s)\.metadata.*({found})") as refused:
        load_backbone(run_dir)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("length", [0, 1, 10, 1000, -1])
def test_a_cut_description_is_damaged(run_dir, length):
    path = newest(run_dir) / ".metadata"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(WorkError, match=r"\.metadata: damaged"):
        read_metadata(newest(run_dir))


def test_a_file_that_is_a_link_is_refused(run_dir, tmp_path):
    file = next(newest(run_dir).glob("*.distcp"))
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(WorkError, match=rf"{file.name} is a link or a device, expected a file; .*cp -rL"):
        load_backbone(run_dir)
    assert damage(newest(run_dir)) == [
        f"{file.name} is a link or a device, expected a file; copy linked files with cp -rL"
    ]


@pytest.mark.parametrize("name", ["progress.json", ".metadata"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(run_dir, name):
    path = newest(run_dir) / name
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(WorkError, match="expected a file"):
        load_backbone(run_dir)


def in_slice(run_dir, record):
    """Have the smallest tensor of the backbone be `record`, at the end of its file."""

    def change(body):
        tensors = body.state_dict_metadata
        ours = [index for index in body.storage_data if index.fqn.startswith("backbone.")]
        index = min(ours, key=lambda index: tensors[index.fqn].size.numel())
        file = newest(run_dir) / body.storage_data[index].relative_path
        body.storage_data[index] = _StorageInfo(file.name, file.stat().st_size, len(record))
        with file.open("ab") as opened:
            opened.write(record)

    change_metadata(newest(run_dir), change)


def saved(value):
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def again(record, compression):
    """The same archive, compressed."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(record)) as old, zipfile.ZipFile(out, "w", compression) as new:
        for each in old.infolist():
            new.writestr(each.filename, old.read(each))
    return out.getvalue()


def test_code_beside_a_tensors_bytes_is_named_and_not_run(run_dir, tmp_path):
    in_slice(run_dir, saved(Attack(tmp_path / "mark")))
    with pytest.raises(WorkError, match=r"\.distcp at byte \d+: its pickle calls posix mkdir, which no tensor needs"):
        load_backbone(run_dir)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    ("record", "found"),
    [
        (again(saved(torch.zeros(1 << 20)), zipfile.ZIP_DEFLATED), "is compressed"),
        (saved(bytearray(4)), "which no tensor needs"),
        (saved(collections.Counter("a")), "which no tensor needs"),
        (saved(["x" * 100_000]), r"data\.pkl has \d+ bytes"),
        (pickle.dumps(5) * 1000, "not a zip file"),
    ],
)
def test_a_slice_that_is_more_than_a_tensor_is_refused(run_dir, record, found):
    in_slice(run_dir, record)
    with pytest.raises(WorkError, match=rf"\.distcp at byte \d+: .*{found}"):
        load_backbone(run_dir)


@pytest.mark.parametrize("name", ["../../config.yaml", "/etc/passwd", "a\0b", "", "..", "a\\b"])
def test_checksums_of_files_elsewhere_are_refused_by_name(run_dir, name):
    path = newest(run_dir) / "checksums-0.json"
    body = json.loads(path.read_text())
    body["files"][name] = [5, 5]
    path.write_text(json.dumps(body))
    (wrong,) = damage(newest(run_dir))
    assert wrong.startswith(f"checksums-0.json: name {name!r} ")
    assert headcount_here("checkpoint", "inspect", run_dir).returncode == 1


LISTS = [
    *("[]", "[" * 100_000, "", '{"ranks": true, "files": {}}', '{"ranks": 1000000000000, "files": {}}'),
    *('{"ranks": 1e999, "files": {}}', '{"ranks": 1, "files": {"a": [1e999, 2]}}', '{"ranks": 1, "files": [["a", 1]]}'),
]


@pytest.mark.parametrize("text", LISTS)
def test_a_list_of_checksums_that_is_none_is_damage(run_dir, text):
    (newest(run_dir) / "checksums-0.json").write_text(text)
    (wrong,) = damage(newest(run_dir))
    assert wrong.startswith("checksums-0.json is not a list of checksums (")


@pytest.mark.parametrize(
    "change", [{"image_size": 1e999}, {"image_size": 10**9}, {"step": -1}, {"num_classes": True}, {"data_digest": 5}]
)
def test_progress_with_an_impossible_number_is_damage(run_dir, change):
    path = newest(run_dir) / "progress.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(WorkError, match=rf"progress\.json is damaged \({next(iter(change))} is"):
        read_progress(newest(run_dir))


class Debians(pickle.Pickler):
    """Writes members of an enumeration as Python 3.11.2 does."""

    def reducer_override(self, thing):
        return (getattr, (type(thing), thing.name)) if isinstance(thing, enum.Enum) else NotImplemented


def written_by_debian(body):
    written = io.BytesIO()
    Debians(written).dump(body)
    return written.getvalue()


def test_a_checkpoint_of_an_older_python_is_read(run_dir):
    path = newest(run_dir) / ".metadata"
    before = read_metadata(newest(run_dir))
    path.write_bytes(written_by_debian(pickle.loads(path.read_bytes())))
    assert b"getattr" in path.read_bytes()
    assert read_metadata(newest(run_dir)).state_dict_metadata == before.state_dict_metadata


@pytest.mark.parametrize("thing", [torch.float32, torch.Size, MetadataIndex, 7])
def test_getattr_of_anything_else_is_refused(run_dir, thing):
    class Asks:
        def __reduce__(self):
            return getattr, (thing, "__class__")

    change_metadata(newest(run_dir), lambda body: [body, Asks()])
    with pytest.raises(WorkError, match=r"its pickle calls builtins\.getattr, which no checkpoint needs"):
        read_metadata(newest(run_dir))


def test_a_sound_checkpoint_is_read_as_torch_reads_it(run_dir):
    seal(newest(run_dir))
    ours, theirs = read_metadata(newest(run_dir)), pickle.loads((newest(run_dir) / ".metadata").read_bytes())
    assert ours.state_dict_metadata == theirs.state_dict_metadata
    assert ours.storage_data == theirs.storage_data
