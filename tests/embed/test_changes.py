"""Galleries that are changed where they are: a search finds what a gallery built anew would give."""

import json
import os
import shutil

import numpy as np
import pytest
import torch

from dist_train.embed import changes, compact
from dist_train.embed.changes import append_rows, remove_rows
from dist_train.embed.compact import Rows
from dist_train.embed.gallery import Gallery, build_gallery
from dist_train.errors import UserError, WorkError
from dist_train.runtime.lock import Lock
from launch.embed.search_cli import _full_path
from tests.embed.killed_changes import kill_loop
from tests.embed.standin import DIM, Numbers, embed, model

QUERIES = torch.randn(7, DIM, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Embeddings of four sources by one model: 40, 60, 20 and 10 numbers, less those without a face."""
    home = tmp_path_factory.mktemp("embeddings")
    for number, (first, count) in enumerate([(0, 40), (100, 160), (200, 220), (300, 310)]):
        embed(home / f"{number}.npy", Numbers(first=first, count=count, path=f"/set-{number}"))
    return [home / f"{number}.npy" for number in range(4)]


@pytest.fixture(params=Rows)
def gallery(request, files, tmp_path):
    return build_gallery(files[:1], tmp_path / "gallery", quiet=True, rows=request.param).directory


def matches(gallery, k):
    """For each query: path of the source, path in it, name and score of the nearest."""
    return [
        [(gallery.sources[m.source]["path"], m.place, m.identity, round(m.score, 5)) for m in found]
        for found in gallery.search(QUERIES, k)
    ]


def everything(gallery):
    return sorted(matches(gallery, len(gallery))[0])


def test_appended_rows_are_found_as_if_the_gallery_were_built_of_all(files, gallery, tmp_path):
    kind = Gallery(gallery).segments[0].kind
    for number, parts in ((1, 2), (2, 3), (3, 4)):  # each smaller than the one before it, so no segment is joined
        made, count = append_rows(gallery, [files[number]])
        assert [segment.kind for segment in made.segments] == [kind] * parts
        assert count == len(np.load(files[number]))
    anew = build_gallery(files, tmp_path / "anew", quiet=True, rows=kind)
    assert len(made) == len(anew)
    for k in (1, 5, len(anew), 1000):
        assert matches(Gallery(gallery), k) == matches(anew, k)


def test_segments_that_are_not_larger_than_what_follows_are_joined_with_it(files, gallery):
    for number in (3, 2, 1):
        before = everything(Gallery(gallery))
        made, count = append_rows(gallery, [files[number]])
        assert len(made.segments) == 2
        assert set(before) < set(everything(made))
        assert len(made) == len(before) + count
    made, _ = append_rows(gallery, [_other(files, 400)])  # smaller, so not joined; what was joined before goes now
    assert len(made.segments) == 3
    assert {path.name for path in gallery.glob("added-*")} == {each["directory"] for each in made.body["added"]}


def _other(files, first):
    path = files[0].parent / f"other-{first}.npy"
    if not path.exists():
        embed(path, Numbers(first=first, count=first + 8, path=f"/other-{first}"))
    return path


@pytest.mark.parametrize("few", [True, False], ids=["few queries", "many queries"])
def test_removed_rows_are_not_found_and_all_others_are(files, gallery, few, monkeypatch):
    monkeypatch.setattr(compact, "_MOST_NUMBERS", 1 << 24 if few else 50)
    monkeypatch.setattr(compact, "_LEAST_CANDIDATES", 1)
    monkeypatch.setattr(compact, "_BLOCK", 16)
    made, _ = append_rows(gallery, files[1:3])
    before = matches(made, len(made))
    gone = before[0][0]
    made, count = remove_rows(gallery, ["person 2"], [gone[1].path])
    wanted = [[m for m in found if m[2] != "person 2" and m[1].path != gone[1].path] for found in before]
    assert count == len(before[0]) - len(wanted[0])
    assert len(made) == len(wanted[0])
    for k in (1, 3, len(made), 500):
        assert matches(Gallery(gallery), k) == [found[:k] for found in wanted]
    again, _ = append_rows(gallery, [files[3]])  # the list of removed rows is shorter now than the rows
    assert set(everything(made)) < set(everything(again))


def test_a_picture_is_named_in_its_source_or_with_the_source_before_it(gallery, tmp_path):
    (tmp_path / "photos").mkdir()
    embed(tmp_path / "photos.npy", Numbers(first=500, count=510, path=str(tmp_path / "photos")))
    embed(tmp_path / "same.npy", Numbers(first=500, count=510, path=str(tmp_path / "same.csv")))
    made, _ = append_rows(gallery, [tmp_path / "photos.npy", tmp_path / "same.npy"])
    place = next(m for m in matches(made, len(made))[0] if m[0].endswith("photos"))[1]
    with pytest.raises(UserError, match=r"no picture '/elsewhere/.*' there; nothing was removed"):
        remove_rows(gallery, pictures=[f"/elsewhere/{place.path}"])
    for name, count in ((f"{tmp_path}/photos/{place.path}", 1), (f"{tmp_path}/{place.path}", 1), (place.path, 2)):
        copy = shutil.copytree(gallery, tmp_path / f"copy{len(name)}")
        assert remove_rows(copy, pictures=[name])[1] == count


class Spelt(Numbers):
    """Pictures whose paths are spelt as tables and tars may spell them."""

    PATHS = ("https://host/a.jpg", "./a.jpg", "people//b.jpg", "", "/elsewhere/c.jpg", "x.tar:d//e.jpg", "x.tar:f://g")

    def _one(self, number):
        place, found = super()._one(number)
        return place._replace(path=self.PATHS[number]), found


def test_a_picture_is_removed_by_what_a_query_prints_of_it(tmp_path):
    embed(tmp_path / "e.npy", Spelt(count=7, path=str(tmp_path / "people.csv")))
    gallery = build_gallery([tmp_path / "e.npy"], tmp_path / "gallery", quiet=True)
    found = gallery.search(QUERIES[:1], 7)[0]
    assert {match.place.path for match in found} == {*Spelt.PATHS} - {""}
    for match in found[1:]:
        made, count = remove_rows(gallery.directory, pictures=[_full_path(gallery, match)])
        assert count == 1
        assert match.place not in [each.place for each in made.search(QUERIES[:1], 7)[0]]


def test_what_cannot_be_changed_is_refused_and_nothing_is_left_of_it(files, gallery, tmp_path, monkeypatch):
    before = everything(Gallery(gallery))
    embed(tmp_path / "other.npy", Numbers(path="/other"), model=model("b" * 64))
    for paths, said in (
        ([], "no row in no file"),
        ([files[1], files[1]], "named twice"),
        ([files[0]], r"pictures/000 of .*0\.npy is there already"),
        ([tmp_path / "other.npy"], r"were not made in the same way: model\.sha256 was"),
        ([tmp_path / "none.npy"], "no such file"),
    ):
        with pytest.raises(UserError, match=said):
            append_rows(gallery, paths)
    broken = files[0].parent / "broken.npy"
    embed(broken, Numbers(first=500, count=520, path="/broken"))
    rows = np.load(broken)
    rows[3] = np.nan
    np.save(broken, rows)
    with pytest.raises(UserError, match=r"broken\.npy: row 3, .* not finite"):
        append_rows(gallery, [broken])
    for arguments, said in (
        ((), "nothing to remove"),
        ((["person 1", "nobody"],), "no identity 'nobody' there; nothing was removed"),
        (([f"person {number}" for number in range(5)],), "would be empty"),
    ):
        with pytest.raises(UserError, match=said):
            remove_rows(gallery, *arguments)
    with Lock(gallery / changes.LOCK):
        for change in (lambda: append_rows(gallery, files[1:2]), lambda: remove_rows(gallery, ["person 1"])):
            with pytest.raises(UserError, match=rf"process {os.getpid()} on .* changes it now"):
                change()
    with pytest.raises(UserError, match="no gallery there"):
        remove_rows(tmp_path / "none", ["ann"])
    assert not (tmp_path / "none").exists()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("dist_train.runtime.written.os.fsync", full)
        for change in (lambda: append_rows(gallery, files[1:2]), lambda: remove_rows(gallery, ["person 1"])):
            with pytest.raises(WorkError, match="cannot be written: No space left on device"):
                change()
    assert everything(Gallery(gallery)) == before
    assert not [path for path in gallery.iterdir() if path.name.startswith(("added", "removed", "."))]


def test_a_removed_picture_can_be_appended_again(files, gallery):
    append_rows(gallery, [files[1]])
    with pytest.raises(UserError, match=r"1\.npy is there already"):
        append_rows(gallery, [files[1]])
    people = {m[2] for m in everything(Gallery(gallery)) if m[0] == "/set-1"}
    append_rows(gallery, [_other(files, 400)])
    pictures = [m[1].path for m in everything(Gallery(gallery)) if m[0] == "/set-1"]
    assert people
    assert remove_rows(gallery, pictures=pictures)[1] == len(pictures)
    assert append_rows(gallery, [files[1]])[1] == len(pictures)


def test_a_reader_that_finds_its_files_gone_reads_the_new_state(files, gallery, monkeypatch):
    append_rows(gallery, [files[3]])
    read = []

    def slow(directory, *arguments):
        if not read:  # meanwhile two changes: the first joins the segment, the second removes what is left of it
            read.append(directory)
            append_rows(gallery, [files[1]])
            remove_rows(gallery, ["person 1"])
        return segment(directory, *arguments)

    from dist_train.embed import gallery as module

    segment = module.Segment
    monkeypatch.setattr(module, "Segment", slow)
    found = everything(Gallery(gallery))
    assert found == everything(Gallery(gallery))
    assert {m[0] for m in found} == {"/set-0", "/set-1", "/set-3"}
    assert all(m[2] != "person 1" for m in found)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"added": [{"directory": "../elsewhere", "rows": 3}]}, "a part is named"),
        ({"added": [{"directory": "added-7", "rows": 3}]}, "FileNotFoundError"),
        ({"added": [3]}, "damaged"),
        ({"removed": "/etc/passwd"}, "a part is named"),
        ({"removed": "removed-9.npy"}, r"removed-9\.npy is int64 \[3\], expected bool"),
        ({"removed": "removed-8.npy"}, "FileNotFoundError"),
        ({"removed": 5}, "damaged"),
    ],
)
def test_damaged_descriptions_of_changes_are_refused(files, tmp_path, change, said):
    gallery = build_gallery(files[:1], tmp_path / "gallery", quiet=True).directory
    np.save(gallery / "removed-9.npy", np.arange(3))
    body = json.loads((gallery / "gallery.json").read_text())
    (gallery / "gallery.json").write_text(json.dumps(body | change))
    with pytest.raises(UserError, match=said):
        Gallery(gallery)


@pytest.mark.job
def test_random_kills_leave_the_state_before_or_after(tmp_path):
    counted = kill_loop(tmp_path, 12, Rows.int8)
    assert counted["odd"] == counted["lost"] == 0
    assert counted["changed"] > 0
