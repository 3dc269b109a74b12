import numpy as np
import pytest

from data_prep.sources.recordio import RecFile, RecordError, image_range, indexed_places, read_rec_index
from dist_train.errors import UserError
from tests.prep.recs import MAGIC, write_rec

PICTURES = [(float(i // 3), bytes([i]) * (50 + i)) for i in range(12)]


def test_a_scan_finds_every_record_with_its_picture_and_label(tmp_path):
    offsets = write_rec(tmp_path, PICTURES)
    with RecFile(tmp_path / "train.rec") as rec:
        places = list(rec.scan())
        records = [rec.read(*place[:3]) for place in places]
    assert [place.offset for place in places] == offsets
    assert not any(place.damage for place in places)
    assert image_range(records[0]) == range(1, 13)
    assert [(r.labels[0], r.data) for r in records[1:13]] == PICTURES
    assert all(len(r.labels) == 2 and not r.data for r in records[13:])


@pytest.mark.parametrize("hint", [0, 8, 64, 10**6, 2**50])
def test_a_record_is_read_whatever_the_size_hint(tmp_path, hint):
    offsets = write_rec(tmp_path, PICTURES)
    with RecFile(tmp_path / "train.rec") as rec:
        assert rec.read(5, offsets[5], hint).data == PICTURES[4][1]


def test_a_record_larger_than_the_first_read_is_whole(tmp_path):
    data = b"x" * (3 << 20)
    write_rec(tmp_path, [(0.0, data)], header=False)
    with RecFile(tmp_path / "train.rec") as rec:
        assert rec.read(0, 0, rec.size).data == data


def test_a_payload_with_the_magic_number_inside_is_joined_again(tmp_path):
    # The header has 24 bytes, so that the picture's multiples of 4 are the payload's too.
    data = b"head" + MAGIC + MAGIC + b"mid." + MAGIC + b"tail!"
    offsets = write_rec(tmp_path, [(0.0, data), (1.0, b"x" + MAGIC + b"unaligned")], header=False)
    with RecFile(tmp_path / "train.rec") as rec:
        places = list(rec.scan())
        assert [place.offset for place in places] == offsets
        assert rec.read(*places[0][:3]).data == data
        assert rec.read(*places[1][:3]).data == b"x" + MAGIC + b"unaligned"


def test_several_labels_replace_the_scalar_one(tmp_path):
    write_rec(tmp_path, [((7.0, 0.0, 3.5), b"jpeg")], header=False)
    with RecFile(tmp_path / "train.rec") as rec:
        assert rec.read(0, 0, 0) == ((7.0, 0.0, 3.5), b"jpeg")
        assert image_range(rec.read(0, 0, 0)) is None


def test_index_lines_out_of_order_and_gaps_keep_their_places(tmp_path):
    offsets = write_rec(tmp_path, PICTURES)
    (tmp_path / "train.idx").write_text("".join(f"{n}\t{offsets[n]}\n" for n in (9, 2, 0, 7)))
    with RecFile(tmp_path / "train.rec") as rec:
        numbers, at, sizes = indexed_places(rec, tmp_path / "train.idx")
        assert numbers.tolist() == [9, 2, 0, 7]
        for n, offset, size in zip(numbers, at, sizes, strict=True):
            assert rec.read(n, offset, size) == rec.read(n, offsets[n], 0)


def test_a_file_cut_in_the_middle_names_the_record_and_the_offset(tmp_path):
    offsets = write_rec(tmp_path, PICTURES)
    path = tmp_path / "train.rec"
    path.write_bytes(path.read_bytes()[: offsets[6] + 30])
    with RecFile(path) as rec:
        places = list(rec.scan())
        assert [place.number for place in places if place.damage] == [6]
        assert places[-1].offset == offsets[6]
        with pytest.raises(RecordError, match=rf"record 6 at offset {offsets[6]}: it needs \d+ bytes .* cut off"):
            rec.read(6, offsets[6], 10**6)
        with pytest.raises(RecordError, match=rf"record 9 at offset {offsets[9]}: the file has"):
            rec.read(9, offsets[9], 0)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(b"\xff" * 4, id="magic"),
        pytest.param(MAGIC + b"\xff\xff\xff\x1f", id="length"),
        pytest.param(MAGIC + b"\x10\x00\x00\x40", id="flag"),
    ],
)
def test_a_scan_goes_on_behind_a_damaged_record(tmp_path, damage):
    offsets = write_rec(tmp_path, PICTURES)
    path = tmp_path / "train.rec"
    content = bytearray(path.read_bytes())
    content[offsets[4] : offsets[4] + len(damage)] = damage
    path.write_bytes(content)
    with RecFile(path) as rec:
        places = list(rec.scan())
        assert [place.offset for place in places] == offsets
        assert [(p.number, str(offsets[4]) in p.damage) for p in places if p.damage] == [(4, True)]
        with pytest.raises(RecordError, match=f"record 4 at offset {offsets[4]}"):
            rec.read(4, offsets[4], 64)


def test_a_lost_middle_part_ends_at_the_next_record(tmp_path):
    split = b"head" + MAGIC + b"tail"
    write_rec(tmp_path, [(0.0, split), (1.0, b"next")], header=False)
    path = tmp_path / "train.rec"
    content = path.read_bytes()
    second = content.index(MAGIC, 8)
    path.write_bytes(content[:second] + content[second + 12 :])  # drop the last part of the split record
    with RecFile(path) as rec:
        places = list(rec.scan())
        assert len(places) == 2
        assert "continuation flag 0" in places[0].damage
        assert rec.read(*places[1][:3]).data == b"next"


def test_impossible_headers_are_named(tmp_path):
    from tests.prep.recs import record

    path = tmp_path / "train.rec"
    path.write_bytes(record(b"short") + record(b"\xff" * 40))
    with RecFile(path) as rec:
        with pytest.raises(RecordError, match="record 0 at offset 0: a payload of 5 bytes"):
            rec.read(0, 0, 0)
        with pytest.raises(RecordError, match="record 1 at offset 16: flag 4294967295"):
            rec.read(1, 16, 0)


def test_missing_empty_and_malformed_files_are_the_users_errors(tmp_path):
    with pytest.raises(UserError, match=r"none\.rec: No such file"):
        RecFile(tmp_path / "none.rec")
    (tmp_path / "empty.rec").touch()
    with pytest.raises(UserError, match="0 bytes"):
        RecFile(tmp_path / "empty.rec")
    (tmp_path / "bad.idx").write_text("0\t0\none\ttwo\n")
    with pytest.raises(UserError, match=r"bad\.idx: expected lines of index<TAB>offset"):
        read_rec_index(tmp_path / "bad.idx")


def test_scanned_and_indexed_places_agree(tmp_path):
    rng = np.random.default_rng(0)
    write_rec(tmp_path, [(float(i), rng.bytes(int(rng.integers(1, 300)))) for i in range(200)])
    with RecFile(tmp_path / "train.rec") as rec:
        scanned = [(p.number, p.offset, p.size) for p in rec.scan()]
        indexed = list(zip(*(column.tolist() for column in indexed_places(rec, tmp_path / "train.idx")), strict=True))
    assert scanned == indexed
