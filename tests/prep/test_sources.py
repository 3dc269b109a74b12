import functools
import http.server
import io
import os
import tarfile
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.sources.archives import RecSource, TarSource
from data_prep.sources.base import Raw, Row, Source
from data_prep.sources.folder import FolderSource, read_file
from data_prep.sources.open import open_source
from data_prep.sources.tables import TableSource
from dist_train.data.index import Member, format_index
from dist_train.data.reject import Reject
from dist_train.errors import UserError
from tests.prep.recs import write_rec


def rows_of(source: Source) -> list[Row]:
    table = pa.Table.from_batches(list(source.batches()))
    return [Row(i, *values) for i, values in enumerate(zip(*(c.to_pylist() for c in table.columns), strict=True))]


def read(source: Source) -> dict[str, Raw | Reject]:
    rows = rows_of(source)
    reader = source.reader()
    found = reader.read_named(rows)
    reader.close()
    return {source.text(row.location): outcome for row, outcome in zip(rows, found, strict=True)}


def put(path, data=b"photo"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


class TestFolder:
    def test_the_first_folder_names_the_identity_and_order_is_that_of_names(self, tmp_path):
        for name in ("b/2.jpg", "b/1.jpg", "a/deep/er/x.png", "a/z.jpg", ".hidden/x.jpg", "a/.DS_Store"):
            put(tmp_path / name, name.encode())
        rows = rows_of(FolderSource(path=tmp_path))
        assert [(row.location, row.identity) for row in rows] == [
            (b"a/z.jpg", "a"),
            (b"a/deep/er/x.png", "a"),
            (b"b/1.jpg", "b"),
            (b"b/2.jpg", "b"),
        ]
        assert read(FolderSource(path=tmp_path))["b/1.jpg"] == Raw(b"b/1.jpg", "b")

    def test_odd_names_survive(self, tmp_path):
        for name in ("Žofie\nline/фото 1.jpg", "笑/a.jpg"):
            put(tmp_path / name)
        put(tmp_path / os.fsdecode(b"\xff\xfe") / "x.jpg")
        found = read(FolderSource(path=tmp_path))
        assert {outcome.identity for outcome in found.values()} == {"Žofie\nline", "笑", "\\xff\\xfe"}

    def test_photos_without_an_identity_are_rejected(self, tmp_path):
        put(tmp_path / "loose.jpg")
        assert read(FolderSource(path=tmp_path))["loose.jpg"].reason == "no identity"

    def test_links_in_a_loop_end_and_links_outside_are_followed_once(self, tmp_path):
        root = tmp_path / "root"
        put(root / "a" / "1.jpg")
        put(tmp_path / "outside" / "2.jpg")
        (root / "a" / "up").symlink_to(root)
        (root / "a" / "self").symlink_to(root / "a" / "self")
        (tmp_path / "outside" / "back").symlink_to(root / "a")
        (tmp_path / "outside" / "again").symlink_to(tmp_path / "outside")
        (root / "b").symlink_to(tmp_path / "outside")
        (root / "c").symlink_to(tmp_path)
        found = read(FolderSource(path=root))
        assert found.pop("a/1.jpg") == Raw(b"photo", "a")
        assert found.pop("b/2.jpg") == Raw(b"photo", "b")
        assert set(found) == {"a/up", "a/self", "b/back", "b/again", "c"}
        assert {outcome.reason for outcome in found.values()} == {"not a file", "unreadable"}

    def test_pipes_broken_links_and_vanished_files_are_rejected_without_waiting(self, tmp_path):
        put(tmp_path / "a" / "gone.jpg")
        os.mkfifo(tmp_path / "a" / "pipe.jpg")
        (tmp_path / "a" / "broken.jpg").symlink_to("nowhere")
        source = FolderSource(path=tmp_path)
        rows = rows_of(source)
        (tmp_path / "a" / "gone.jpg").unlink()
        reasons = [outcome.reason for outcome in source.reader().read(rows)]
        assert dict(zip([row.location for row in rows], reasons, strict=True)) == {
            b"a/broken.jpg": "vanished",
            b"a/gone.jpg": "vanished",
            b"a/pipe.jpg": "not a file",
        }

    def test_a_failing_storage_is_not_the_files_fault(self, monkeypatch):
        def stale(*_):
            raise OSError(116, "Stale file handle")

        monkeypatch.setattr(os, "open", stale)
        with pytest.raises(OSError, match="Stale"):
            read_file(b"/x")


class TestTable:
    @pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
    def test_paths_start_at_the_table_and_identities_may_be_numbers(self, tmp_path, suffix):
        put(tmp_path / "photos" / "a,1.jpg", b"one")
        table = pa.table(
            {"note": ["x", "y"], "path": ["photos/a,1.jpg", str(tmp_path / "no.jpg")], "identity": [7, 12]}
        )
        path = tmp_path / f"list{suffix}"
        if suffix == ".parquet":
            pq.write_table(table, path)
        else:
            comma = "," if suffix == ".csv" else "\t"
            path.write_text(comma.join(table.column_names) + "\n")
            with path.open("a") as file:
                file.writelines(comma.join(f'"{v}"' for v in row.values()) + "\n" for row in table.to_pylist())
        source = open_source(path)
        assert [row.identity for row in rows_of(source)] == ["7", "12"]
        there, gone = read(source).values()
        assert there == Raw(b"one", "7")
        assert gone.reason == "vanished"

    def test_empty_cells_are_rejected(self, tmp_path):
        (tmp_path / "list.csv").write_text("path,identity\n,a\nx.jpg,\n")
        assert [o.reason for o in read(open_source(tmp_path / "list.csv")).values()] == ["no path", "no identity"]

    def test_a_missing_column_is_named(self, tmp_path):
        (tmp_path / "list.csv").write_text("file,who\nx,y\n")
        pq.write_table(pa.table({"file": ["x"], "who": [1.5]}), tmp_path / "list.parquet")
        for name in ("list.csv", "list.parquet"):
            with pytest.raises(UserError, match=r"list\.\w+: .*'path'"):
                rows_of(open_source(tmp_path / name))
            named = {"path_column": "file", "identity_column": "who"}
            if name == "list.csv":
                assert len(rows_of(open_source(tmp_path / name, **named))) == 1
            else:
                with pytest.raises(UserError, match="'who' holds double, expected text"):
                    rows_of(open_source(tmp_path / name, **named))

    def test_addresses_are_fetched_and_failures_have_reasons(self, tmp_path, monkeypatch):
        put(tmp_path / "web" / "a b.jpg", b"fetched")

        class Handler(http.server.SimpleHTTPRequestHandler):
            failures: list[str] = []  # noqa: RUF012 - shared on purpose

            def do_GET(self):
                if self.path == "/broken.jpg":
                    self.failures.append(self.path)
                    self.send_error(503)
                elif self.path == "/private.jpg":
                    self.send_error(403)
                else:
                    super().do_GET()

            def log_message(self, *_):
                pass

        monkeypatch.setattr("data_prep.sources.tables._PAUSES_S", (0.0, 0.0))
        handler = functools.partial(Handler, directory=tmp_path / "web")
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            base = f"http://127.0.0.1:{server.server_port}"
            names = ["a%20b.jpg", "none.jpg", "private.jpg", "broken.jpg"]
            (tmp_path / "list.csv").write_text("path,identity\n" + "".join(f"{base}/{n},p\n" for n in names))
            found = list(read(open_source(tmp_path / "list.csv")).values())
            server.shutdown()
        assert found[0] == Raw(b"fetched", "p")
        assert [outcome.reason for outcome in found[1:]] == ["vanished", "unreadable", "unreachable"]
        assert len(Handler.failures) == 3

    def test_an_unknown_protocol_is_rejected(self, tmp_path):
        (tmp_path / "list.csv").write_text("path,identity\nnope://x/y.jpg,p\n")
        assert [o.reason for o in read(open_source(tmp_path / "list.csv")).values()] == ["no such protocol"]


class TestRec:
    PICTURES = tuple((float(i // 2), bytes([i]) * 60) for i in range(8))

    @pytest.mark.parametrize("index", [True, False])
    @pytest.mark.parametrize("header", [True, False])
    def test_images_come_without_the_records_of_identities(self, tmp_path, index, header):
        write_rec(tmp_path, self.PICTURES, index=index, header=header)
        found = list(read(open_source(tmp_path)).values())
        assert found == [Raw(data, str(int(label))) for label, data in self.PICTURES]

    @pytest.mark.parametrize("index", [True, False])
    def test_a_cut_file_gives_rejects_by_number_and_offset(self, tmp_path, index):
        offsets = write_rec(tmp_path, self.PICTURES, index=index)
        path = tmp_path / "train.rec"
        path.write_bytes(path.read_bytes()[: offsets[4] + 40])
        found = read(RecSource(path=path))
        lost = [4, 5, 6, 7, 8] if index else [4]
        assert [name for name, outcome in found.items() if isinstance(outcome, Reject)] == [
            f"train.rec#{number}" for number in lost
        ]
        assert f"record 4 at offset {offsets[4]}" in found["train.rec#4"].detail
        assert found["train.rec#3"] == Raw(self.PICTURES[2][1], "1")

    @pytest.mark.parametrize(
        ("header", "message"),
        [
            (True, r"4 of 8 image records are not in it; move it away to have train\.rec scanned"),
            (False, r"records behind byte \d+ of train\.rec are not in it: it is cut off; move it away"),
        ],
    )
    def test_an_index_that_was_cut_off_is_refused_and_the_way_out_works(self, tmp_path, header, message):
        write_rec(tmp_path, self.PICTURES, header=header)
        index = tmp_path / "train.idx"
        index.write_text("".join(index.read_text().splitlines(keepends=True)[:5]))
        with pytest.raises(UserError, match=message):
            rows_of(open_source(tmp_path))
        index.unlink()
        assert len(rows_of(open_source(tmp_path))) == 8

    @pytest.mark.parametrize("header", [True, False])
    def test_an_index_in_another_order_and_numbers_with_gaps_are_taken_as_they_are(self, tmp_path, header):
        offsets = write_rec(tmp_path, self.PICTURES, header=header)
        lines = [f"{n if header else 3 * n + 7}\t{offset}\n" for n, offset in enumerate(offsets)]
        (tmp_path / "train.idx").write_text("".join(lines[5:] + lines[:5][::-1]))
        assert len(rows_of(open_source(tmp_path))) == 8

    def test_labels_that_are_no_numbers_of_classes_and_missing_pictures_are_rejected(self, tmp_path):
        write_rec(tmp_path, [(float("nan"), b"x"), (1.5, b"x"), (-1.0, b"x"), (0.0, b""), (3.0, b"x")], header=False)
        found = list(read(RecSource(path=tmp_path / "train.rec")).values())
        assert [outcome.reason for outcome in found[:4]] == ["bad label", "bad label", "bad label", "no picture"]
        assert found[4] == Raw(b"x", "3")

    def test_a_rounded_count_in_record_0_is_put_right(self, tmp_path):
        from tests.prep.recs import payload

        offsets = write_rec(tmp_path, self.PICTURES)
        path = tmp_path / "train.rec"
        content = path.read_bytes()
        right = payload((9.0, 13.0), b"")
        for wrong in (8.0, 10.0):
            path.write_bytes(content.replace(right, payload((wrong, 13.0), b"")))
            assert len(rows_of(RecSource(path=path))) == 8
        assert len(offsets) == 13

    @pytest.mark.parametrize("stop", [float("nan"), float("inf"), -float("inf"), 1e30, -3.0, 0.0, 8.5])
    def test_a_record_0_that_counts_no_records_is_named_and_the_way_out_works(self, tmp_path, stop):
        from tests.prep.recs import payload

        write_rec(tmp_path, self.PICTURES)
        path = tmp_path / "train.rec"
        path.write_bytes(path.read_bytes().replace(payload((9.0, 13.0), b""), payload((stop, 13.0), b"")))
        message = rf"train\.rec: record 0: images end before record {stop:g}".replace("+", r"\+")
        with pytest.raises(UserError, match=rf"{message}, expected .*; move train\.idx away"):
            rows_of(RecSource(path=path))
        (tmp_path / "train.idx").unlink()
        assert len(rows_of(RecSource(path=path))) == 8


class TestTar:
    def write(self, path, members):
        with tarfile.open(path, "w") as tar:
            index = []
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
                index.append(
                    [Member(name.rpartition(".")[2], tar.offset - 512 * -(-len(data) // 512), len(data), name)]
                )
        return index

    def test_identity_is_the_cls_or_else_the_folder(self, tmp_path):
        self.write(tmp_path / "b.tar", [("x/anna/1.jpg", b"1"), ("x/anna/1.json", b"{}"), ("readme.txt", b"no")])
        self.write(tmp_path / "a.tar", [("7.cls", b"bob\n"), ("7.jpg", b"seven"), ("8.jpg", b"eight")])
        found = read(open_source(tmp_path))
        assert found == {
            "a.tar:7.jpg": Raw(b"seven", "bob"),
            "a.tar:8.jpg": Reject("no identity", "neither a .cls beside it nor a folder around it"),
            "b.tar:x/anna/1.jpg": Raw(b"1", "anna"),
            "b.tar:readme.txt": Reject("no picture", "none among the 1 files of its key"),
        }

    def test_an_index_beside_it_gives_the_same_rows(self, tmp_path):
        index = self.write(tmp_path / "a.tar", [(f"p{i}/photo.jpg", bytes([i]) * 700) for i in range(5)])
        without = rows_of(TarSource(path=tmp_path / "a.tar"))
        (tmp_path / "a.idx").write_text(format_index(index))
        assert rows_of(TarSource(path=tmp_path / "a.tar")) == without

    def test_a_cut_tar_rejects_what_is_lost(self, tmp_path):
        self.write(tmp_path / "a.tar", [(f"p/{i}.jpg", bytes([i]) * 700) for i in range(3)])
        path = tmp_path / "a.tar"
        path.write_bytes(path.read_bytes()[: 2 * (512 + 1024) + 512 + 100])
        found = list(read(TarSource(path=path)).values())
        assert [outcome.reason if isinstance(outcome, Reject) else "" for outcome in found] == ["", "", "truncated"]

    def test_photos_behind_a_damaged_header_are_found_and_the_gap_is_rejected(self, tmp_path):
        self.write(tmp_path / "a.tar", [(f"p/{i}.jpg", bytes([i]) * 700) for i in range(3)])
        content = bytearray((tmp_path / "a.tar").read_bytes())
        content[1536 : 1536 + 200] = b"\xaa" * 200
        (tmp_path / "a.tar").write_bytes(content)
        found = read(TarSource(path=tmp_path / "a.tar"))
        assert list(found) == ["a.tar:p/0.jpg", "a.tar:bytes 1536 to 3072", "a.tar:p/2.jpg"]
        assert found["a.tar:bytes 1536 to 3072"].reason == "damaged"

    def test_something_else_under_the_name_of_a_tar_is_refused(self, tmp_path):
        (tmp_path / "a.tar").write_bytes(b"\x1f\x8b" + b"z" * 3000)
        with pytest.raises(UserError, match=r"a\.tar: not an uncompressed tar: it is compressed by gzip"):
            rows_of(TarSource(path=tmp_path / "a.tar"))


def test_only_rows_that_lie_in_a_folder_of_the_source_have_a_root(tmp_path):
    def roots(source, *locations):
        return [source.reader().root(Row(0, location, 0, 0, "a")) for location in locations]

    here = os.fsencode(tmp_path)
    assert roots(TableSource(path=tmp_path / "t.csv"), b"a.jpg", b"/a.jpg", b"http://h/a.jpg") == [here, None, None]
    assert roots(TarSource(path=tmp_path / "a.tar"), b"a.tar\0a.jpg") == [here]


def test_the_kind_of_source_is_seen_from_what_lies_there(tmp_path):
    put(tmp_path / "folder" / "a" / "1.jpg")
    write_rec(tmp_path / "rec", [(0.0, b"x")])
    put(tmp_path / "tars" / "x.tar", b"\0" * 1024)
    put(tmp_path / "t.csv", b"path,identity\n")
    put(tmp_path / "what.zip")
    kinds = {
        "folder": FolderSource,
        "rec": RecSource,
        "rec/train.rec": RecSource,
        "tars": TarSource,
        "t.csv": TableSource,
    }
    for name, kind in kinds.items():
        assert type(open_source(tmp_path / name)) is kind
    with pytest.raises(UserError, match=r"what\.zip: of no known kind"):
        open_source(tmp_path / "what.zip")
    with pytest.raises(UserError, match="not there"):
        open_source(tmp_path / "none")
