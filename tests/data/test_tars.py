"""Tars by others: every file in them is in the set or named, in `data`, `prep` and `embed` alike."""

import io
import struct
import tarfile
import tracemalloc

import pytest
import webdataset

from dist_train.data.index import format_index, parse_members
from dist_train.data.tar_samples import read_samples
from dist_train.data.tars import Entry, LeftOut, walk_tar
from dist_train.errors import UserError
from tests.data.tars import by_data, by_embed, by_prep, drawn, labelled, tar_of

FORMS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
ODD_NAMES = {
    "blanks": "my photo {}",
    "tabs": "my\tphoto {}",
    "line feeds": "a\nb{}",
    "percent": "100%25-{}",
    "beyond ASCII": "jürgen-{}",
    "Chinese, with its own blank": "人物\u3000{}/照片",
    "line separator": "a\u2028b{}",
    "not UTF-8": "M\udcfcller-{}",
    "long": "folder/" * 20 + "photo-{}",
    "from here": "./{}",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ODD_NAMES)
def test_odd_names_are_read_in_every_form_of_tar(tmp_path, kind, form):
    if (kind, form) == ("long", "ustar"):
        pytest.skip("that form cannot hold it")
    tar_of(tmp_path / "a.tar", labelled(ODD_NAMES[kind].format(n) for n in range(4)), FORMS[form])
    assert by_prep(tmp_path) == (["0", "1", "2", "3"], {})
    taken, rejected = by_embed(tmp_path)
    assert ([label for _, label in taken], rejected) == ([0, 1, 2, 3], {})
    manifest, labels, bad = by_data(tmp_path)
    assert (labels, bad) == ([0, 1, 2, 3], [])
    assert (manifest.image_size, manifest.num_classes) == (32, 4)
    again = list(read_samples(tmp_path / "a.tar"))  # with the index that `data` has written
    assert [sample.members[0].name for sample in again] == [ODD_NAMES[kind].format(n) + ".jpg" for n in range(4)]


def test_an_index_holds_any_name_in_printable_ascii():
    sample = [*read_line("a b%\n\u3000\udcff.jpg"), *read_line("plain.cls")]
    text = format_index([sample])
    assert text.isascii()
    assert text.count("\n") == 2
    assert parse_members(text.splitlines()[1].encode(), 10**6) == sample


def read_line(name):
    line = format_index([[m for m in parse_members(b"x 512 7 y", 10**6)]]).splitlines()[1].encode()
    return [parse_members(line, 10**6)[0]._replace(name=name)]


def test_what_webdataset_writes_is_what_webdataset_reads(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for number in range(3):
            writer.write({"__key__": f"dir/k{number}", "JPG": drawn(number), "cls": number, "json": {"n": number}})
    by_field = [each["__key__"] for each in webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False)]
    assert [sample.key for sample in read_samples(tmp_path / "a.tar")] == by_field
    assert by_data(tmp_path)[1] == [0, 1, 2]


class TestOneKey:
    def test_two_pictures_of_one_key_are_refused_with_both_names_and_never_one_of_them_taken(self, tmp_path):
        names = ["fine", "person.0.000", "person.0.001"]
        tar_of(tmp_path / "a.tar", labelled(names))
        with pytest.raises(UserError, match=r"a\.tar: person\.0\.000\.jpg and person\.0\.001\.jpg both have the key"):
            by_data(tmp_path)
        lost = {f"a.tar:{name}.jpg": "same key" for name in names[1:]}
        assert by_prep(tmp_path) == (["0"], lost)
        assert by_embed(tmp_path) == ([(None, 0)], lost)

    @pytest.mark.parametrize("between", [[], ["other"]])
    def test_the_same_name_twice_is_refused_side_by_side_or_apart(self, tmp_path, between):
        tar_of(tmp_path / "a.tar", labelled(["same", *between, "same"]))
        with pytest.raises(UserError, match=r"same\.jpg and same\.jpg both have the key same"):
            by_data(tmp_path)
        for reject in (by_prep(tmp_path)[1], by_embed(tmp_path)[1]):
            assert reject == {"a.tar:same.jpg": "same key"}

    def test_photos_in_folders_may_have_dots_in_their_names(self, tmp_path):
        photos = [(f"J.R. Ewing/photo.v{n}.jpg", drawn(n)) for n in range(40)]
        tar_of(tmp_path / "a.tar", [*photos, ("Ann/1.jpg", drawn(50)), ("Ann/1.txt", b"Ann")])
        assert by_prep(tmp_path) == (["J.R. Ewing"] * 40 + ["Ann"], {})
        assert [identity for identity, _ in by_embed(tmp_path)[0]] == ["J.R. Ewing"] * 40 + ["Ann"]

    def test_one_picture_with_a_dotted_name_goes_with_the_label_of_that_name(self, tmp_path):
        tar_of(tmp_path / "a.tar", labelled(["a.v2", "b.v2"]))
        assert by_prep(tmp_path) == (["0", "1"], {})
        assert by_data(tmp_path)[1] == [0, 1]


def test_what_macos_adds_is_passed_over_and_parts_no_sample(tmp_path):
    members = []
    for name, data in labelled("abc"):
        members += [(f"./._{name}", b"Mac OS X"), (f"./{name}", data), (f"__MACOSX/{name}", b"x"), (".DS_Store", b"")]
    tar_of(tmp_path / "a.tar", members)
    assert by_prep(tmp_path) == (["0", "1", "2"], {})
    assert by_embed(tmp_path) == ([(None, 0), (None, 1), (None, 2)], {})
    assert by_data(tmp_path)[1:] == ([0, 1, 2], [])


class TestJoined:
    def test_both_of_two_joined_tars_are_read_though_their_names_are_the_same(self, tmp_path):
        one = tar_of(tmp_path / "parts" / "1", labelled("ab")).read_bytes()
        (tmp_path / "a.tar").write_bytes(one + one)
        assert by_prep(tmp_path / "a.tar") == (["0", "1"] * 2, {})
        assert [label for _, label in by_embed(tmp_path / "a.tar")[0]] == [0, 1] * 2
        assert by_data(tmp_path)[1] == [0, 1, 0, 1]

    def test_an_index_of_the_first_half_is_not_believed(self, tmp_path):
        tar = tar_of(tmp_path / "a.tar", labelled("ab"))
        half = [sample.members for sample in read_samples(tar)]
        with tar.open("ab") as file:
            file.write(tar_of(tmp_path / "more" / "b", labelled("cd")).read_bytes())
        (tmp_path / "a.idx").write_text(format_index(half))
        assert by_prep(tar) == (["0", "1"] * 2, {})


class TestDamage:
    def test_a_tar_cut_off_says_what_is_lost_and_gives_the_rest(self, tmp_path, caplog):
        tar = tar_of(tmp_path / "a.tar", labelled("abc"))
        (at,) = (found.offset for found in walk_tar(tar) if found.name == "c.jpg")
        tar.write_bytes(tar.read_bytes()[: at + 100])
        assert by_prep(tar) == (["0", "1"], {"a.tar:c.jpg": "truncated"})
        assert by_embed(tar)[1] == {"a.tar:c.jpg": "truncated"}
        assert by_data(tmp_path)[1] == [0, 1]
        assert "what came after is lost" in caplog.text

    def test_files_behind_damage_are_found_and_the_damage_is_named(self, tmp_path):
        tar = tar_of(tmp_path / "a.tar", labelled("abc"))
        data = bytearray(tar.read_bytes())
        (at,) = (found.offset for found in walk_tar(tar) if found.name == "b.jpg")
        data[at - 512 : at - 400] = b"\xaa" * 112
        tar.write_bytes(data)
        taken, rejected = by_prep(tar)
        assert taken == ["0", "2"]
        assert set(rejected.values()) == {"damaged", "no picture"}

    @pytest.mark.parametrize(("kind", "told"), [(tarfile.LNKTYPE, "hard link"), (tarfile.SYMTYPE, "symbolic link")])
    def test_links_and_their_like_are_named(self, tmp_path, kind, told):
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            for name, data in labelled("a"):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            link = tarfile.TarInfo("b.jpg")
            link.type, link.linkname = kind, "a.jpg"
            tar.addfile(link)
        (left,) = (found for found in walk_tar(tmp_path / "a.tar") if isinstance(found, LeftOut))
        assert told in left.detail
        assert by_prep(tmp_path / "a.tar") == (["0"], {"a.tar:b.jpg": "not a file"})
        assert by_embed(tmp_path / "a.tar")[1] == {"a.tar:b.jpg": "not a file"}

    def test_pictures_under_names_without_extension_and_other_files_are_named(self, tmp_path):
        tar_of(tmp_path / "a.tar", [*labelled("a"), ("photo", drawn(1)), ("x.heic", b"?"), ("notes.txt", b"")])
        names = {"a.tar:photo", "a.tar:x.heic", "a.tar:notes.txt"}
        assert by_prep(tmp_path / "a.tar") == (["0"], dict.fromkeys(names, "no picture"))
        assert set(by_embed(tmp_path / "a.tar")[1]) == names

    @pytest.mark.parametrize("claimed", [b"77777777777\0", b"\xff" * 12, b"\x80" + b"\x7f" * 11])
    @pytest.mark.parametrize("kind", [b"x", b"L", b"0", b"g"])
    def test_a_header_that_claims_any_size_takes_no_memory_and_no_time(self, tmp_path, kind, claimed):
        tar = tar_of(tmp_path / "a.tar", labelled("ab"))
        header = bytearray(tarfile.TarInfo("bad.jpg").tobuf(tarfile.GNU_FORMAT))
        header[124:136], header[156:157], header[148:156] = claimed, kind, b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        content = tar.read_bytes()
        tar.write_bytes(content[:1024] + bytes(header) + content[1024:])
        tracemalloc.start()
        found = list(walk_tar(tar))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        tracemalloc.stop()
        assert found[0] == Entry("a.jpg", 512, len(drawn(0)))

    def test_a_chain_of_extended_headers_is_no_recursion(self, tmp_path):
        record = b"12 path=abc\n"
        info = tarfile.TarInfo("x")
        info.type, info.size = tarfile.XHDTYPE, len(record)
        block = info.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0")
        tar = tar_of(tmp_path / "a.tar", labelled("a"))
        tar.write_bytes(block * 3000 + tar.read_bytes())
        assert [found.name for found in walk_tar(tar)] == ["abc", "a.cls"]


class TestFolder:
    def test_a_compressed_tar_beside_a_tar_is_refused_by_all(self, tmp_path):
        tar = tar_of(tmp_path / "a.tar", labelled("ab"))
        with tarfile.open(tmp_path / "b.tar.gz", "w:gz") as packed:
            packed.add(tar, "x")
        for read in (by_data, by_prep, by_embed):
            with pytest.raises(UserError, match=r"b\.tar\.gz lies beside a\.tar and is compressed"):
                read(tmp_path)

    def test_photos_beside_a_tar_are_refused_where_they_are_input_and_named_where_not(self, tmp_path, caplog):
        tar_of(tmp_path / "backup.tar", labelled("ab"))
        (tmp_path / "p0").mkdir()
        (tmp_path / "p0" / "0.jpg").write_bytes(drawn(1))
        for read in (by_prep, by_embed):
            with pytest.raises(UserError, match=r"both a tar, backup\.tar, and photos, as p0/0\.jpg"):
                read(tmp_path)
        assert by_data(tmp_path)[1] == [0, 1]
        assert "files beside backup.tar that are not read: 1, e.g. p0/0.jpg" in caplog.text

    def test_a_folder_of_tars_in_it_is_named(self, tmp_path, caplog):
        tar_of(tmp_path / "a.tar", labelled("ab"))
        tar_of(tmp_path / "more" / "b.tar", labelled("cd"))
        assert by_prep(tmp_path) == (["0", "1"], {})
        assert "more/b.tar" in caplog.text

    def test_a_set_of_our_own_may_have_its_report_beside_it(self, tmp_path):
        tar_of(tmp_path / "a.tar", labelled("ab"))
        by_data(tmp_path)  # writes the manifest
        (tmp_path / "report.png").write_bytes(drawn(1, kind="PNG"))
        assert by_embed(tmp_path)[1] == {}


class TestIndex:
    @pytest.mark.parametrize("line", ["jpg 512 99999999999999 a.jpg cls 2048 1 a.cls", "jpg -5 10 a.jpg cls 1 1 a.cls"])
    def test_a_line_that_leads_out_of_the_tar_costs_its_sample_and_is_named(self, tmp_path, line):
        tar_of(tmp_path / "a.tar", labelled("abc"))
        by_data(tmp_path)
        index = tmp_path / "a.idx"
        lines = index.read_text().splitlines()
        index.write_text("\n".join([lines[0], lines[1], line, lines[3]]) + "\n")
        _, labels, (reason,) = by_data(tmp_path)
        assert labels == [0, 2]
        assert "a.idx, line 3: " in reason
        assert by_prep(tmp_path) == (["0", "1", "2"], {}), "the tar itself is read through"
        assert len(by_embed(tmp_path)[0]) == 3

    def test_a_shard_that_changed_is_not_taken_for_what_was_indexed(self, tmp_path):
        tar = tar_of(tmp_path / "a.tar", labelled("ab"), tarfile.PAX_FORMAT)
        by_data(tmp_path)
        data = tar.read_bytes()
        tar.write_bytes(data[512:] + data[:512])
        assert by_data(tmp_path)[1] == []

    def test_members_far_apart_are_not_read_with_all_between(self, tmp_path):
        tar = tar_of(tmp_path / "a.tar", labelled("a"))
        by_data(tmp_path)
        with tar.open("r+b") as file:
            file.truncate(1 << 30)  # sparse
        manifest = (tmp_path / "manifest.json").read_text().replace(f'"bytes": {10240}', f'"bytes": {1 << 30}')
        (tmp_path / "manifest.json").write_text(manifest)
        (tmp_path / "a.idx").write_text("v1.2 1\njpg 512 600 a.jpg cls 1000000000 1 a.cls\n")
        _, labels, (reason,) = by_data(tmp_path)
        assert labels == []
        assert "its files span" in reason


def test_a_sparse_file_is_named(tmp_path):
    """The form of GNU tar --sparse, old and by PAX; the content in the tar is not that of the file."""
    old = bytearray(tarfile.TarInfo("s.jpg").tobuf(tarfile.GNU_FORMAT))
    old[156:157], old[124:136] = b"S", b"00000000012\0"
    old[148:156] = b" " * 8
    old[148:156] = b"%06o\0 " % sum(old)
    tar = tar_of(tmp_path / "a.tar", labelled("a"))
    tar.write_bytes(bytes(old) + bytes(512) + tar.read_bytes())
    first, second, _ = walk_tar(tar)
    assert (first.name, first.reason) == ("s.jpg", "not a file")
    assert second.name == "a.jpg"
    info = tarfile.TarInfo("p.jpg")
    info.size, info.pax_headers = 10, {"GNU.sparse.major": "1", "GNU.sparse.name": "real.jpg"}
    with tarfile.open(tmp_path / "b.tar", "w", format=tarfile.PAX_FORMAT) as out:
        out.addfile(info, io.BytesIO(bytes(10)))
    assert [found[:2] for found in walk_tar(tmp_path / "b.tar")] == [("real.jpg", "not a file")]


def test_a_file_of_zeros_or_of_nothing_has_no_files_and_one_of_anything_else_is_refused(tmp_path):
    tar = tmp_path / "a.tar"
    for content in (b"", bytes(5000)):
        tar.write_bytes(content)
        assert list(walk_tar(tar)) == []
    for content in (struct.pack(">I", 7), b"hello" * 1000, drawn(1)):
        tar.write_bytes(content)
        with pytest.raises(UserError, match="not an uncompressed tar: its first bytes are"):
            list(walk_tar(tar))
