"""Jobs over tars by others: every picture is in the set or in the rejects, and what is printed says so."""

import pytest

from data_prep.align_cli import summary
from data_prep.sources.archives import TarSource
from data_prep.transforms import Keep
from dist_train.data.tars import walk_tar
from dist_train.errors import UserError, WorkError
from tests.data.tars import SIDE, drawn, labelled, tar_of
from tests.prep.jobs import options, rejects, run, samples


def of_tar(path):
    source = TarSource(path=path)
    return options(path, Keep(image_size=SIDE), min_images=1).model_copy(update={"source": source})


def test_pictures_of_one_key_are_rejected_with_both_names_and_the_others_kept(tmp_path):
    names = [*(f"{n}" for n in range(5)), *(f"img.{n}" for n in range(5))]
    tar_of(tmp_path / "in" / "a.tar", labelled(names))
    run(tmp_path / "out", of_tar(tmp_path / "in"))
    assert len(samples(tmp_path / "out")) == 5
    found = rejects(tmp_path / "out")
    assert {reason for reason, _ in found.values()} == {"same key"}
    assert "img.3.jpg and img.0.jpg both have the key img" in found["a.tar:img.3.jpg"][1]
    told = summary(tmp_path / "out")
    assert "left out: 5 same key; each with its reason" in told
    assert "e.g. a.tar:img.0.jpg: same key: img.0.jpg and img.1.jpg both have the key img" in told


def test_a_set_of_nothing_but_such_is_an_error_that_names_two(tmp_path):
    tar_of(tmp_path / "in" / "a.tar", labelled(["same", "same"]))
    with pytest.raises(WorkError, match=r"2 same key, e\.g\. a\.tar:same\.jpg: same key: same\.jpg and same\.jpg"):
        run(tmp_path / "out", of_tar(tmp_path / "in"))


def test_damage_links_and_odd_names_are_in_the_rejects_and_the_set(tmp_path):
    tar = tar_of(tmp_path / "in" / "a.tar", labelled(["M\udcfcller", "jürgen 1", "a\nb"]))
    end = max(found.offset for found in walk_tar(tar)) + 512  # behind the last label
    tar.write_bytes(tar.read_bytes()[:end] + b"\xaa" * 512)
    run(tmp_path / "out", of_tar(tmp_path / "in"))
    assert len(samples(tmp_path / "out")) == 3
    assert {name: reason for name, (reason, _) in rejects(tmp_path / "out").items()} == {
        f"a.tar:bytes {end} to {end + 512}": "damaged"
    }


def test_bytes_behind_a_jpegs_end_and_webps_stay_as_they_are(tmp_path):
    data = [drawn(1) + bytes(1000), drawn(2, kind="WEBP"), drawn(3)[:-2]]
    members = [(f"p{n}/{n}.{'webp' if n == 1 else 'jpg'}", each) for n, each in enumerate(data)]
    tar_of(tmp_path / "in" / "a.tar", members)
    run(tmp_path / "out", of_tar(tmp_path / "in"))
    assert sorted(picture for _, picture in samples(tmp_path / "out").values()) == sorted(data[:2])
    assert {name: reason for name, (reason, _) in rejects(tmp_path / "out").items()} == {"a.tar:p2/2.jpg": "truncated"}


def test_photos_beside_a_tar_end_the_job_before_it_begins(tmp_path):
    tar_of(tmp_path / "in" / "a.tar", labelled("ab"))
    (tmp_path / "in" / "photo.jpg").write_bytes(drawn(1))
    with pytest.raises(UserError, match=r"both a tar, a\.tar, and photos, as photo\.jpg"):
        run(tmp_path / "out", of_tar(tmp_path / "in"))
