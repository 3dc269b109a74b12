"""Tables with bad rows: each rejects itself, with its reason, and the others are read."""

import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.job.labels import sort_key
from data_prep.sources import tables
from data_prep.sources.base import Raw, Row
from data_prep.sources.open import open_source
from dist_train.data.reject import Reject
from dist_train.errors import UserError


def read(path):
    """What becomes of each listed row, by its text."""
    source = open_source(path)
    found = {}
    with_reader = source.reader()
    for batch in source.batches():
        rows = [Row(0, r["location"], r["offset"], r["size"], r["identity"]) for r in batch.to_pylist()]
        for row, raw in zip(rows, with_reader.read_named(rows), strict=True):
            found[source.text(row.location)] = raw
    return found


@pytest.fixture
def photo(tmp_path):
    (tmp_path / "good.jpg").write_bytes(b"photo")
    return tmp_path


@pytest.mark.parametrize(
    "scheme", ["reference", "file", "memory", "zip", "simplecache::http", "jinja", "local", "git", "s3a", "HTTP", ""]
)
def test_an_address_of_another_scheme_rejects_its_row_by_name(photo, scheme):
    (photo / "t.csv").write_text(f"path,identity\n{scheme}://foo,x\ngood.jpg,y\n")
    found = read(photo / "t.csv")
    assert found["good.jpg"] == Raw(b"photo", "y")
    assert found[f"{scheme}://foo"] == Reject(
        "no such protocol", f"{scheme}: expected a path, or one of http, https, s3, gs"
    )


def test_a_nul_in_a_path_or_an_address_rejects_its_row(photo):
    (photo / "t.csv").write_bytes(b"path,identity\na\0b.jpg,x\nhttp://h\0/x,x\ngood.jpg,y\n")
    found = read(photo / "t.csv")
    assert [raw.reason if isinstance(raw, Reject) else raw for raw in found.values()] == [
        "bad path",
        "bad path",
        Raw(b"photo", "y"),
    ]


def test_lines_with_another_number_of_columns_are_listed_and_rejected(photo):
    (photo / "t.csv").write_text("path,identity\nshort\ngood.jpg,y\na,b,c\n")
    found = read(photo / "t.csv")
    assert found["good.jpg"] == Raw(b"photo", "y")
    bad = {text: raw.reason for text, raw in found.items() if isinstance(raw, Reject)}
    assert list(bad.values()) == ["bad row", "bad row"]
    assert any("1 columns, expected 2: short" in text for text in bad)
    assert any("3 columns, expected 2: a,b,c" in text for text in bad)


def test_names_that_are_not_utf8_are_shown_as_those_of_files(photo):
    (photo / "t.csv").write_bytes(b"path,identity\ngood.jpg,\xe9va\nm\xfcller.jpg,x\n")
    found = read(photo / "t.csv")
    assert found["good.jpg"] == Raw(b"photo", r"\xe9va")
    assert found[r"m\xfcller.jpg"].reason == "vanished"


def test_identities_of_a_parquet_table_that_are_not_utf8_are_shown(photo):
    names = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\x02\0\0\0"), pa.py_buffer(b"\xff\xfe")]
    )
    pq.write_table(pa.table({"path": ["good.jpg"], "identity": names}), photo / "t.parquet")
    assert read(photo / "t.parquet")["good.jpg"] == Raw(b"photo", r"\xff\xfe")


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_paths_of_a_parquet_table_need_not_be_utf8_and_addresses_may_be_long(photo, kind):
    (photo / os.fsdecode(b"m\xfcller.jpg")).write_bytes(b"other")
    raw = pa.array([b"m\xfcller.jpg", b"good.jpg", None, b"nope://" + b"x" * 3000], pa.binary()).cast(
        {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}[kind]
    )
    pq.write_table(pa.table({"identity": [1, 2, 3, 4], "path": raw.view(kind)}), photo / "t.parquet")
    found = read(photo / "t.parquet")
    assert found[r"m\xfcller.jpg"] == Raw(b"other", "1")
    assert found["good.jpg"] == Raw(b"photo", "2")
    assert [found[""].reason, found["nope://" + "x" * 3000].reason] == ["no path", "no such protocol"]


@pytest.mark.parametrize("column", ["path", "identity"])
def test_a_small_parquet_table_of_very_much_text_is_refused_before_it_is_unpacked(photo, column):
    columns = {"path": ["good.jpg"] * 100, "identity": ["y"] * 100}
    columns[column] = pa.DictionaryArray.from_arrays(pa.array([0] * 100, pa.int32()), ["x" * (1 << 20)]).cast("string")
    pq.write_table(pa.table(columns), photo / "t.parquet", compression="zstd")
    assert (photo / "t.parquet").stat().st_size < 10_000
    with pytest.raises(UserError, match=rf"t\.parquet: column {column}: 104,857,600 bytes in 100 rows, expected"):
        read(photo / "t.parquet")


def test_a_damaged_parquet_table_is_one_line(photo):
    pq.write_table(pa.table({"path": ["good.jpg"], "identity": ["y"]}), photo / "t.parquet")
    (photo / "t.parquet").write_bytes((photo / "t.parquet").read_bytes()[:-20])
    with pytest.raises(UserError, match=r"t\.parquet: ") as caught:
        read(photo / "t.parquet")
    assert "\n" not in str(caught.value)


class _Endless(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        try:
            while True:
                self.wfile.write(bytes(1 << 16))
        except OSError:
            pass

    def log_message(self, *_):
        pass


def test_a_server_that_sends_without_end_rejects_its_row(photo, monkeypatch):
    monkeypatch.setattr(tables, "MAX_FILE_BYTES", 1 << 20)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Endless) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/x.jpg"
        (photo / "t.csv").write_text(f"path,identity\n{address},x\ngood.jpg,y\n")
        found = read(photo / "t.csv")
        server.shutdown()
    assert found[address] == Reject("too large", f"more than {1 << 20} bytes")
    assert found["good.jpg"] == Raw(b"photo", "y")


def test_an_interrupt_waits_for_no_download_and_begins_none(photo, monkeypatch):
    begun, ended, go_on = [], [], threading.Event()

    def silent(address, *_):
        begun.append(address)
        if address.endswith("/0"):
            raise KeyboardInterrupt
        go_on.wait(30)
        ended.append(address)
        return b"photo"

    monkeypatch.setattr(tables, "read_address", silent)
    (photo / "t.csv").write_text("path,identity\n" + "".join(f"http://h/{number},x\n" for number in range(30)))
    with pytest.raises(KeyboardInterrupt):
        read(photo / "t.csv")
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("fetch-")]
    assert threads
    assert all(thread.daemon for thread in threads), "or the end of the process would wait for them"
    assert not ended
    go_on.set()
    for thread in threads:
        thread.join()
    assert len(begun) < 30


def test_an_address_that_is_none_is_settled_at_once(photo, monkeypatch):
    monkeypatch.setattr(tables, "_PAUSES_S", (3600.0,))
    (photo / "t.csv").write_text("path,identity\nhttp://,x\nhttp://a:b:c/x,x\n")
    assert {raw.reason for raw in read(photo / "t.csv").values()} == {"bad address"}


def test_identities_are_sorted_by_number_however_many_digits_they_have():
    names = ["10", "9", "b", "009", "9" * 5000, "0", "a", "-1", "٣"]
    assert sorted(names, key=sort_key) == ["0", "009", "9", "10", "9" * 5000, "-1", "a", "b", "٣"]
