import pyarrow.parquet as pq
import pytest

from data_prep.job.plan import JobFiles, JobOptions, JobPlan, restore_options
from data_prep.sources.folder import FolderSource
from data_prep.sources.name_list import open_name_list, read_names
from dist_train.errors import UserError
from tests.data.sets import encode, picture
from tests.prep.jobs import identities, options, photos, rejects, run
from tests.prep.recs import write_rec
from tests.prep.standin import Upper
from tests.prep.test_align_cli import run as headcount


def write(path, *lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_names_stand_a_line_each_or_in_lfws_people_files(tmp_path):
    plain = write(tmp_path / "names.txt", "Ann", "", " Bo van Ek ", "12", "Ann")
    assert read_names(plain) == ["Ann", "Bo van Ek", "12"]
    view1 = write(tmp_path / "peopleDevTrain.txt", "3", "Ann\t1", "Bo van Ek\t530", "12\t2")
    assert read_names(view1) == ["Ann", "Bo van Ek", "12"]
    view2 = write(tmp_path / "people.txt", "2", "1", "Ann\t1", "2", "Bo van Ek\t530", "12\t2")
    assert read_names(view2) == ["Ann", "Bo van Ek", "12"]


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["3", "Ann\t1", "Bo\t2"], r"its head says 3 names, it lists 2; the file is cut off"),
        (["2", "1", "Ann\t1"], r"its first line says 2 folds, it has 1"),
        (["1", "Ann\t1\t2"], r"line 2: 'Ann\\t1\\t2'; expected a name, a tab and its number of photos"),
        (["2", "Ann\t1", "Bo"], r"line 3: 'Bo'; expected"),
        (["2", "Ann\tone"], r"line 2: .*; expected"),
        (["", ""], r"no name in it"),
    ],
)
def test_lists_that_are_wrong_are_refused(tmp_path, lines, told):
    with pytest.raises(UserError, match=rf"names\.txt: {told}"):
        read_names(write(tmp_path / "names.txt", *lines))
    with pytest.raises(UserError, match=r"none\.txt: No such file"):
        read_names(tmp_path / "none.txt")


def chosen(tmp_path, *names, **more):
    names = open_name_list(write(tmp_path / "names.txt", *names))
    return options(photos(tmp_path / "photos"), identities=names, **more)


def test_only_photos_of_the_listed_identities_are_inputs(tmp_path, caplog):
    caplog.set_level("INFO")
    opts = chosen(tmp_path, "person 4", "nobody", "person 1")
    run(tmp_path / "out", opts)
    assert identities(tmp_path / "out") == {"person 1": (0, 9), "person 4": (1, 9)}
    assert rejects(tmp_path / "out") == {}
    assert JobPlan(JobFiles(tmp_path / "out")).rows_total == 18
    assert "18 of 54 photos are of the listed identities" in caplog.text
    assert "1 of 3 names have no photo: 'nobody'" in caplog.text


def test_a_list_that_changed_is_another_job_and_the_plan_needs_it_no_more(tmp_path):
    opts = chosen(tmp_path, "person 4")
    run(tmp_path / "out", opts)
    with pytest.raises(UserError, match=r"identities\.sha256 was '.*', is '.*'; use another OUT"):
        run(tmp_path / "out", chosen(tmp_path, "person 5"))
    (tmp_path / "names.txt").unlink()
    assert JobPlan(JobFiles(tmp_path / "out")).options == opts


def test_lists_that_choose_nothing_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"none of its 2 names is an identity of the source, e\.g\. 'Person 1'"):
        run(tmp_path / "out", chosen(tmp_path, "Person 1", "person_2"))
    write_rec(tmp_path, [(float(number), b"photo") for number in range(3)])
    with pytest.raises(UserError, match=r"only when it is read \(a \.rec\), so a list cannot choose"):
        headcount("align", tmp_path / "train.rec", tmp_path / "rec", "--identities", tmp_path / "names.txt")


def test_a_plan_of_before_lists_and_the_main_face_keeps_its_own_options(tmp_path):
    described = JobOptions(source=FolderSource(path=tmp_path), transform=Upper()).described()
    del described["identities"]
    assert restore_options(described).identities is None
    described["transform"] = {"class": "data_prep.align_transform:Align", "faces": "largest"}
    assert restore_options(described).transform.faces == "largest"


def test_view_1_is_a_people_file_and_two_photos_at_least(tmp_path):
    source = photos(tmp_path / "photos", people=3)
    (source / "alone").mkdir()
    (source / "alone" / "1.jpg").write_bytes(b"photo alone")
    for number, path in enumerate(source.rglob("*.jpg")):
        path.write_bytes(encode(picture(number, 16), ".png"))
    people = write(tmp_path / "peopleDevTrain.txt", "3", "person 1\t9", "alone\t1", "person 0\t9")
    arguments = ("--identities", people, "--min-images", 2, "--keep", "--image-size", 16, "--workers", 1)
    headcount("align", source, tmp_path / "out", *arguments)
    assert set(identities(tmp_path / "out")) == {"person 0", "person 1"}
    (reject,) = pq.read_table(tmp_path / "out" / "rejects.parquet").to_pylist()
    assert (reject["identity"], reject["reason"]) == ("alone", "few pictures")
