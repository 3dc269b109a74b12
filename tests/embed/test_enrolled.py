import json
import os
import zlib

import numpy as np
import pytest

from dist_train.embed import enrolled as module
from dist_train.embed.enrolled import LOG, Enrolled
from dist_train.errors import UserError, WorkError

DIM = 6
MADE_BY = {"model": {"name": "faces", "sha256": "a" * 64}, "embedding_dim": DIM, "flip": True}


def vector(number):
    return np.random.default_rng(number).normal(size=DIM).astype(np.float32)


def opened(home, **settings):
    return Enrolled(home / "gallery", MADE_BY, **settings)


def filled(home, names):
    log = opened(home)
    for number, name in enumerate(names):
        log.add(name, vector(number), b"picture of %d" % number)
    return log


def who(log):
    return [entry.identity for entry in log.snapshot()[1]]


def line(body):
    text = json.dumps(body).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def test_who_was_enrolled_is_there_again_and_who_was_forgotten_has_left_the_disk(tmp_path):
    log = filled(tmp_path, ["ann", "bob", "cleo", "bob"])
    assert log.forget(identity="bob") == 2
    assert log.forget(number=1) == 1
    assert log.forget(number=1) == log.forget(identity="nobody") == 0
    assert log.add("dan", vector(7)).number == 5
    log.close()
    again = opened(tmp_path)
    rows, entries = again.snapshot()
    assert [(entry.number, entry.identity) for entry in entries] == [(3, "cleo"), (5, "dan")]
    wanted = np.stack([vector(2), vector(7)]).astype(np.float64)
    assert np.allclose(rows, wanted / np.linalg.norm(wanted, axis=1, keepdims=True), atol=1e-7)
    assert again.picture(entries[0]) == b"picture of 2"
    assert again.picture(entries[1]) is None
    text = (tmp_path / "gallery" / LOG).read_bytes()
    assert b"bob" not in text
    assert b"ann" not in text
    again.forget(number=5)
    again.close()
    assert opened(tmp_path).add("eve", vector(8)).number == 6  # no number is given twice


def test_whatever_is_cut_off_the_last_record_the_others_stay_and_more_can_be_added(tmp_path):
    filled(tmp_path, ["ann", "bob"]).close()
    path = tmp_path / "gallery" / LOG
    whole = path.read_bytes()
    last = whole[: whole.rstrip(b"\n").rindex(b"\n") + 1]
    for cut in (*range(len(last) + 1, len(whole), 37), len(whole) - 1):
        for garbage in (b"", b"\0" * 30):
            path.write_bytes(whole[:cut] + garbage)
            log = opened(tmp_path)
            assert who(log) == ["ann"]
            log.add("cleo", vector(3))
            log.close()
            log = opened(tmp_path)
            assert who(log) == ["ann", "cleo"]
            log.close()


def test_damage_before_the_last_record_is_refused_with_its_place(tmp_path):
    filled(tmp_path, ["ann", "bob", "cleo"]).close()
    path = tmp_path / "gallery" / LOG
    lines = path.read_bytes().splitlines(keepends=True)
    for number in (0, 1, 2):
        spoiled = [*lines]
        spoiled[number] = lines[number].replace(b'"', b"'", 1)
        path.write_bytes(b"".join(spoiled))
        with pytest.raises(UserError, match=rf"enrolled\.log: damaged at byte {sum(map(len, lines[:number]))};"):
            opened(tmp_path)
    assert path.read_bytes() == b"".join(spoiled)


@pytest.mark.parametrize(
    ("head", "record", "message"),
    [
        ({}, {"add": 1, "identity": "ann", "time": 1.0, "embedding": "AAAA"}, "damaged"),
        ({}, {"add": 0, "identity": "ann", "time": 1.0, "embedding": ""}, "not ours"),
        ({}, {"add": 1, "identity": "ann" * 100, "time": 1.0, "embedding": ""}, "not ours"),
        ({}, {"forget": []}, "not ours"),
        ({}, {"version": 1, "made_by": {}, "next": 3}, "wrong kind"),
        ({}, [1], "not ours"),
        ({"version": 2}, None, "version 2, expected 1"),
        ({"made_by": MADE_BY | {"flip": False}}, None, "flip was False, is True"),
        ({"made_by": MADE_BY | {"model": {"name": "x", "sha256": "b" * 64}}}, None, r"model\.sha256 was .bbb"),
    ],
)
def test_a_log_of_others_is_refused(tmp_path, head, record, message):
    (tmp_path / "gallery").mkdir()
    first = {"version": 1, "made_by": MADE_BY, "next": 1} | head
    lines = [line(first)] + ([line(record), line({"forget": [1]})] if record is not None else [])
    (tmp_path / "gallery" / LOG).write_bytes(b"".join(lines))
    with pytest.raises(UserError, match=message):
        opened(tmp_path)


def test_a_log_that_is_a_link_or_empty_or_text_is_refused(tmp_path):
    home = tmp_path / "gallery"
    home.mkdir()
    for text in (b"", b"hello\n"):
        (home / LOG).write_bytes(text)
        with pytest.raises(UserError, match="not a log of enrolled people"):
            opened(tmp_path)
    (home / LOG).replace(tmp_path / "elsewhere")
    (home / LOG).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic link"):
        opened(tmp_path)
    (home / LOG).unlink()
    os.mkfifo(home / LOG)
    with pytest.raises(UserError, match="expected a file of at most 32 GiB"):
        opened(tmp_path)


def test_one_process_enrols_and_others_may_read_meanwhile(tmp_path):
    log = filled(tmp_path, ["ann"])
    with pytest.raises(UserError, match=r"process \d+ on .* enrols there; one process at a time"):
        opened(tmp_path)
    reader = opened(tmp_path, writable=False)
    assert who(reader) == ["ann"]
    with pytest.raises(UserError, match="opened for reading"):
        reader.add("bob", vector(1))
    log.close()
    assert who(opened(tmp_path)) == ["ann"]


def test_a_full_disk_takes_nothing_and_spoils_nothing(tmp_path, monkeypatch):
    log = filled(tmp_path, ["ann"])
    write = os.write

    def half(descriptor, data):
        monkeypatch.setattr(os, "write", no_more)
        return write(descriptor, data[: len(data) // 2])

    def no_more(descriptor, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(WorkError, match=r"enrolled\.log: cannot be written: No space left"):
        log.add("bob", vector(1))
    monkeypatch.setattr(os, "write", write)
    log.add("cleo", vector(2))
    assert who(log) == ["ann", "cleo"]
    log.close()
    assert who(opened(tmp_path)) == ["ann", "cleo"]


def test_a_disk_that_loses_data_is_written_to_no_more(tmp_path, monkeypatch):
    log = filled(tmp_path, ["ann"])

    def fails(descriptor):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails)
        with pytest.raises(WorkError, match="Input/output error"):
            log.add("bob", vector(1))
    with pytest.raises(WorkError, match="writing failed before"):
        log.add("bob", vector(1))
    assert who(log) == ["ann"]


def test_names_embeddings_pictures_and_numbers_have_bounds(tmp_path, monkeypatch):
    log = opened(tmp_path, most=2)
    for name in ("", "   ", "a" * 201, "a\nb", "\udcff", "\x1b[2J"):
        with pytest.raises(UserError, match="1 to 200 printable characters"):
            log.add(name, vector(1))
    for wrong in (np.zeros(DIM, np.float32), np.full(DIM, np.nan, np.float32), vector(1)[:3]):
        with pytest.raises(UserError, match="6 finite numbers"):
            log.add("ann", wrong)
    with pytest.raises(UserError, match="picture of 131,073 bytes"):
        log.add("ann", vector(1), b"0" * 131_073)
    log.add("ann", vector(1))
    log.add("bob", vector(1))
    with pytest.raises(UserError, match="2 are enrolled, which is the most"):
        log.add("cleo", vector(1))
    monkeypatch.setattr(module, "_MOST_FORGOTTEN", 1)  # several records for one name
    log.forget(identity="ann")
    log.add("bob", vector(1))
    assert log.forget(identity="bob") == 2
    log.close()
    assert who(opened(tmp_path, most=2)) == []


def test_a_snapshot_stays_as_it_was(tmp_path):
    log = filled(tmp_path, [f"person {number}" for number in range(16)])
    rows, entries = log.snapshot()
    before = rows.clone()
    log.forget(number=3)
    for number in range(40):
        log.add("more", vector(100 + number))
    assert len(entries) == 16
    assert rows.equal(before)
    assert len(log) == 55
