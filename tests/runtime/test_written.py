"""Files and directories that appear by rename."""

import errno
import json
import os
import subprocess
import sys

import pytest

from dist_train.errors import WorkError
from dist_train.runtime.written import (
    remove_temporaries,
    write_failures,
    write_json,
    write_text,
    written,
    written_directory,
    written_output,
)


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_has_its_old_content_until_the_new_one_is_complete_and_on_the_disk(tmp_path, monkeypatch):
    path, synced = tmp_path / "a.json", []
    write_text(path, "old")
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(path.read_text()))
    with written(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
    assert synced == ["old"], "on the disk before it gets its name"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def fill(path, error):
    with written(path) as file:
        file.write(b"half")
        raise error


def test_a_file_that_is_not_completed_leaves_the_old_one_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt):
        fill(path, KeyboardInterrupt())
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_leaves_is_found_by_the_cleaner_and_files_of_others_stay(tmp_path):
    script = (
        "import os, signal; from pathlib import Path; from dist_train.runtime.written import written\n"
        f"with written(Path({str(tmp_path / 'a.bin')!r})) as file: os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", script], check=False)
    (left,) = tmp_path.iterdir()
    for name in ("a.tmp", ".hidden", "b.txt"):
        (tmp_path / name).touch()
    remove_temporaries(tmp_path)
    assert not left.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"a.tmp", ".hidden", "b.txt"}


def test_json_ends_its_last_line_and_is_read_back(tmp_path):
    write_json(tmp_path / "a.json", {"name": "Žofie", "score": 0.5})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert text.endswith("}\n")
    assert json.loads(text) == {"name": "Žofie", "score": 0.5}


def test_a_directory_appears_whole_over_an_empty_one_and_over_a_killed_predecessors_rest(tmp_path):
    path = tmp_path / "gallery"
    path.mkdir()
    (tmp_path / ".gallery.tmp").mkdir()
    (tmp_path / ".gallery.tmp" / "old").touch()
    with written_directory(path) as home:
        (home / "new").touch()
        assert list(path.iterdir()) == []
    assert [each.name for each in path.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [path]


def fill_directory(path, error):
    with written_directory(path) as home:
        (home / "new").touch()
        raise error


def test_a_directory_that_is_not_completed_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="half"):
        fill_directory(tmp_path / "gallery", ValueError("half"))
    assert list(tmp_path.iterdir()) == []


def test_what_the_disk_refuses_is_a_failure_that_names_the_output_and_the_way_out(tmp_path, monkeypatch):
    says = r"^report x: cannot be written: No space left on device$"
    with pytest.raises(WorkError, match=says), write_failures("report x"):
        full()
    monkeypatch.setattr(os, "fsync", full)
    says = r"a\.csv: cannot be written: No space left on device; make room and run the same command again"
    with pytest.raises(WorkError, match=says), written_output(tmp_path / "a.csv"):
        pass
    assert list(tmp_path.iterdir()) == []
