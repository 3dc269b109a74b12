"""`headcount prep resume --retry-unreachable`: photos that can be reached now join the set, and none is lost."""

from pathlib import Path

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from data_prep.cli import app
from data_prep.engines.queue import UnitQueue
from data_prep.job.plan import JobFiles, JobOptions
from data_prep.job.progress import StageBars
from data_prep.job.restored import restore_part
from data_prep.job.run import resume_job
from data_prep.job.work import LEFT_OUT
from data_prep.sources import tables
from data_prep.sources.open import open_source
from dist_train.data.index import format_index, read_index
from tests.prep.jobs import InProcess, content, identities, rejects, run, samples
from tests.prep.standin import Upper

HOST = "http://photos"


@pytest.fixture
def host(monkeypatch, tmp_path):
    """A server of texts; `down` are the addresses that it does not answer now, `asked` those that it was asked for."""

    class Host:
        down, asked = set(), []

        def read(self, address, most, timeout):
            self.asked.append(address)
            if address in self.down:
                raise ConnectionError("no answer")
            return b"photo " + (b"0 0" if address.endswith("copy") else address[-3:].encode())

    served = Host()
    monkeypatch.setattr(tables, "read_address", served.read)
    monkeypatch.setattr(tables, "_PAUSES_S", ())
    return served


def addresses(person):
    return [f"{HOST}/{person} {number}" for number in range(5)]


EVERY = [address for person in range(6) for address in addresses(person)] + [f"{HOST}/copy"]


def job(tmp_path, **more):
    lines = [f"{address},person {address[-3] if not address.endswith('copy') else 0}\n" for address in EVERY]
    (tmp_path / "t.csv").write_text("path,identity\n" + "".join(lines))
    return JobOptions(source=open_source(tmp_path / "t.csv"), transform=Upper(), unit_rows=8, **more)


def again(out):
    resume_job(out, InProcess(), StageBars(quiet=True), unreachable=True)


DOWN = {
    "some": {EVERY[3], EVERY[17]},
    "a whole person, whose name shifts all labels": set(addresses(2)),
    "enough pictures of a person": set(addresses(4)[1:]),
    "the first of two copies": {EVERY[0]},
    "half of many units": set(EVERY[4:30:2]),
}


@pytest.mark.parametrize("name", DOWN)
def test_the_set_becomes_what_it_would_have_been(tmp_path, host, name):
    run(tmp_path / "whole", job(tmp_path, min_images=2))
    host.down = DOWN[name]
    run(tmp_path / "set", job(tmp_path, min_images=2))
    assert content(tmp_path / "set") != content(tmp_path / "whole")
    host.down = set()
    again(tmp_path / "set")
    assert content(tmp_path / "set") == content(tmp_path / "whole")
    assert not JobFiles(tmp_path / "set", "again").units.exists()
    host.asked.clear()
    again(tmp_path / "set")
    assert host.asked == [], "nothing is left to try"


def test_only_units_with_a_photo_that_answers_are_done_again_and_the_rest_stays_in_rejects(tmp_path, host):
    host.down = {EVERY[3], EVERY[17]}
    run(tmp_path / "set", job(tmp_path))
    host.down = {EVERY[17]}
    host.asked.clear()
    again(tmp_path / "set")
    assert {source: reason for source, (reason, _) in rejects(tmp_path / "set").items()} == {
        EVERY[17]: "unreachable",
        f"{HOST}/copy": "duplicate",
    }
    assert len(host.asked) == 2 + 8, "both, and the unit of the one that answers"


def test_a_server_that_is_gone_takes_nothing_out_of_the_set(tmp_path, host):
    host.down = {EVERY[3], EVERY[17]}
    run(tmp_path / "set", job(tmp_path))
    before = content(tmp_path / "set")
    host.down = set(EVERY)
    again(tmp_path / "set")
    assert content(tmp_path / "set") == before
    assert identities(tmp_path / "set")["person 0"] == (0, 4)


@pytest.mark.parametrize("complete", [True, False], ids=["out of its shard", "out of its part"])
def test_a_photo_that_answers_joins_the_set_though_its_neighbours_are_gone(tmp_path, host, complete, monkeypatch):
    host.down = {EVERY[17]}
    run(tmp_path / "whole", job(tmp_path))
    host.down = {EVERY[3], EVERY[17]}
    with monkeypatch.context() as patch:
        if not complete:
            patch.setattr("data_prep.job.run._seal", killed)
        try:
            run(tmp_path / "set", job(tmp_path))
        except Killed:
            assert not complete
    host.down = set(EVERY) - {EVERY[3]}
    again(tmp_path / "set")
    assert content(tmp_path / "set") == content(tmp_path / "whole")
    host.down = set()
    again(tmp_path / "set")
    run(tmp_path / "all", job(tmp_path))
    assert content(tmp_path / "set") == content(tmp_path / "all")


def test_the_option_asks_again(tmp_path, host, monkeypatch):
    monkeypatch.setattr("data_prep.align_cli._open_engine", lambda *_: InProcess())
    monkeypatch.setattr("dist_train.runtime.extras.missing", lambda _: "needs pictures")
    host.down = {EVERY[3], EVERY[17]}
    run(tmp_path / "set", job(tmp_path))
    host.down = {EVERY[17]}
    told = [
        CliRunner().invoke(app, ["resume", str(tmp_path / "set"), *options]).stdout
        for options in ([], ["--retry-unreachable"])
    ]
    assert "28 pictures of 6 identities" in told[0]
    assert "29 pictures of 6 identities" in told[1]
    assert "1 unreachable" in told[1]


@pytest.mark.parametrize("neighbour", [False, True], ids=["nothing of its unit answers", "one of its unit answers"])
def test_a_picture_that_was_left_out_and_is_gone_takes_nothing_else_along(tmp_path, host, neighbour):
    """The first of person 4 is in the unit of the others of its kind, the last in that of person 5."""
    run(tmp_path / "whole", job(tmp_path, min_images=2))
    host.down = set(addresses(4)[:4])
    run(tmp_path / "set", job(tmp_path, min_images=2))
    before = samples(tmp_path / "set")
    assert rejects(tmp_path / "set")[EVERY[24]][0] == "few pictures"
    host.down = set(EVERY) - {EVERY[20], EVERY[21]} - ({EVERY[25]} if neighbour else set())
    again(tmp_path / "set")
    labels = identities(tmp_path / "set")
    assert labels["person 4"] == (4, 2)
    assert labels["person 5"] == (5, 5)
    assert {data for _, data in samples(tmp_path / "set").values()} == {
        *(data for _, data in before.values()),
        b"PHOTO 4 0",
        b"PHOTO 4 1",
    }
    assert rejects(tmp_path / "set")[EVERY[24]][0] == "unreachable"
    host.down = set()
    again(tmp_path / "set")
    assert content(tmp_path / "set") == content(tmp_path / "whole")


def test_a_photo_that_became_another_is_not_taken_for_the_old_one(tmp_path, host, monkeypatch):
    host.down = {EVERY[3]}
    run(tmp_path / "set", job(tmp_path))
    before = samples(tmp_path / "set")
    host.down = set()
    monkeypatch.setattr(tables, "read_address", lambda address, *_: b"bad" if address == EVERY[1] else b"photo")
    again(tmp_path / "set")
    assert samples(tmp_path / "set") == before | {"000000003": (0, b"PHOTO")}


def test_a_host_that_stays_silent_is_not_asked_for_all_of_its_photos(tmp_path, host, monkeypatch):
    monkeypatch.setattr("data_prep.job.again._SILENT", 3)
    monkeypatch.setattr("data_prep.job.again._AT_ONCE", 2)
    host.down = set(EVERY[4:30:2])
    run(tmp_path / "set", job(tmp_path))
    host.asked.clear()
    again(tmp_path / "set")
    assert len(host.asked) in (3, 4), "of 13"


def test_pictures_that_were_restored_for_other_labels_are_never_sealed(tmp_path, host, monkeypatch):
    run(tmp_path / "whole", job(tmp_path, min_images=2))
    host.down = set(addresses(4)[1:]) | set(addresses(2)[1:])
    run(tmp_path / "set", job(tmp_path, min_images=2))
    host.down = set(addresses(4)[1:])

    with monkeypatch.context() as patch:
        patch.setattr("data_prep.job.run._seal", killed)
        with pytest.raises(Killed):
            again(tmp_path / "set")
    host.down = set()
    again(tmp_path / "set")
    assert content(tmp_path / "set") == content(tmp_path / "whole")


class FromQueue(InProcess):
    """An engine whose worker finds its task in a queue, as one of an array of Slurm does."""

    def __init__(self, home):
        super().__init__()
        self.home = home

    def run(self, task, units):
        queue = UnitQueue.create(self.home / f"{len(self.units)}", task, units)
        yield from super().run(queue.task(), units)


def test_workers_of_a_queue_do_units_again_beside_the_old_ones(tmp_path, host):
    run(tmp_path / "whole", job(tmp_path))
    host.down = {EVERY[3], EVERY[17]}
    run(tmp_path / "set", job(tmp_path))
    host.down = set(EVERY) - {EVERY[3]}
    resume_job(tmp_path / "set", FromQueue(tmp_path / "lost"), StageBars(quiet=True), unreachable=True)
    assert rejects(tmp_path / "set").keys() == {EVERY[17], EVERY[30]}
    host.down = set()
    resume_job(tmp_path / "set", FromQueue(tmp_path / "found"), StageBars(quiet=True), unreachable=True)
    assert content(tmp_path / "set") == content(tmp_path / "whole")


def test_pictures_are_taken_out_of_a_shard_by_its_own_headers_whatever_index_lies_beside_it(tmp_path, host):
    """As where a job is killed between the renames of a new index and of its shard."""
    run(tmp_path / "set", job(tmp_path))
    files = JobFiles(tmp_path / "set")
    labels = pa.ipc.open_file(files.labels).get_batch(0).column("label").to_pylist()
    without_the_first = pa.array([LEFT_OUT, *labels[1:]])
    assert restore_part(files, 0, without_the_first)
    right = files.restored(0).read_bytes()
    assert b"PHOTO" in right
    index = files.shard(0).with_suffix(".idx")
    first, *others = read_index(index, files.shard(0).stat().st_size)
    moved = others[0][0].offset - first[0].offset
    index.write_text(format_index([[m._replace(offset=m.offset - moved) for m in each] for each in others]))
    assert restore_part(files, 0, without_the_first)
    assert files.restored(0).read_bytes() == right


class Killed(BaseException):
    """The end of the process."""


def killed(*_):
    raise Killed


def test_a_retry_that_was_killed_is_finished_by_a_plain_resume_and_another(tmp_path, host, monkeypatch):
    run(tmp_path / "whole", job(tmp_path))
    from data_prep.job import again as module

    real = module._replace
    for step in ("before", "after"):
        host.down = set(addresses(2))
        run(tmp_path / step, job(tmp_path))
        host.down = set()

        def replace(layout, other, unit, step=step):
            if step == "after":
                real(layout, other, unit)
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(module, "_replace", replace)
            with pytest.raises(Killed):
                again(tmp_path / step)
        resume_job(tmp_path / step, InProcess(), StageBars(quiet=True))
        again(tmp_path / step)
        assert content(tmp_path / step) == content(tmp_path / "whole")


@pytest.mark.parametrize("last", [".tar", ".parquet", ".json"])
@pytest.mark.parametrize("cleans", [True, False], ids=["stopped", "killed"])
def test_a_unit_that_was_stopped_on_the_way_into_its_place_gets_there(tmp_path, host, monkeypatch, last, cleans):
    host.down = {EVERY[17]}
    run(tmp_path / "whole", job(tmp_path))
    host.down = {EVERY[3], EVERY[17]}
    run(tmp_path / "set", job(tmp_path))
    host.down = set(EVERY) - {EVERY[3]}
    real = Path.replace

    def replace(path, target):
        real(path, target)
        if path.parent.name == "again" and Path(target).parent.name == "units" and path.suffix == last:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        if not cleans:
            patch.setattr("data_prep.job.again.clear_again", lambda _: None)
        with pytest.raises(Killed):
            again(tmp_path / "set")
    host.down = set(EVERY)
    resume_job(tmp_path / "set", InProcess(), StageBars(quiet=True))
    assert content(tmp_path / "set") == content(tmp_path / "whole")
