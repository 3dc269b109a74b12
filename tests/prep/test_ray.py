"""A real Ray cluster of two nodes on this machine, a CPU each."""

import os
import socket
import subprocess
import sys

import pytest

from data_prep.engines.ray import RayEngine
from dist_train.errors import UserError
from tests.prep.jobs import (
    aligned_alike,
    content,
    messy,
    options,
    orders,
    photos,
    rejects,
    run,
    samples,
    threads_of_workers,
)
from tests.prep.standin import Failing, Upper

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'headcount[ray]'")


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    prompt = {"health_check_period_ms": 500, "health_check_failure_threshold": 2, "health_check_initial_delay_ms": 0}
    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": prompt}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.getcwd())  # workers are started by the nodes, and find stand-ins here
        cluster = Cluster(initialize_head=True, head_node_args=head)
        patch.setenv("RAY_ADDRESS", cluster.address)
        cluster.add_node(num_cpus=1)
        yield cluster
    cluster.shutdown()


class Placed(Upper):
    """Notes the nodes that work."""

    notes: str

    def open(self):
        with open(f"{self.notes}/{ray.get_runtime_context().get_node_id()}", "w"):
            return super().open()


def test_an_address_where_nobody_answers_is_said_at_once(tmp_path, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(UserError, match=f"RAY_ADDRESS={address}: nothing answers there"):
            run(tmp_path / "out", options(photos(tmp_path / "photos")), RayEngine())


def test_two_nodes_make_the_same_bytes_as_one_process(cluster, tmp_path):
    root = messy(tmp_path / "photos")
    (tmp_path / "notes").mkdir()
    run(tmp_path / "out", options(root, Placed(notes=str(tmp_path / "notes"), pause_s=0.05)), RayEngine())
    run(tmp_path / "one", options(root))
    assert content(tmp_path / "out") == content(tmp_path / "one")
    assert len(list((tmp_path / "notes").iterdir())) == 2


def test_workers_use_one_thread(cluster, tmp_path):
    notes = threads_of_workers(tmp_path, lambda _: RayEngine())
    assert {note.rpartition(",")[0] for note in notes} == {"torch 1, cv2 1"}


def test_workers_do_not_look_for_modules_in_the_working_directory(cluster, tmp_path, monkeypatch):
    """Where the job itself does not: Ray would add it."""
    (tmp_path / "z3").mkdir()
    (tmp_path / "z3" / "__init__.py").write_text("raise RuntimeError('from the working directory')\n")
    code = (
        "from pathlib import Path\n"
        "import os\n"
        "from data_prep.engines.ray import RayEngine\n"
        "from tests.prep.jobs import options, photos, run\n"
        "from tests.prep.standin import Importing\n"
        "run(Path('out').absolute(), options(photos(Path('photos').absolute()), Importing(module='z3')), RayEngine())\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONSAFEPATH": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_detector_gives_the_same_bytes_on_two_nodes(cluster, tmp_path):
    aligned_alike(tmp_path, lambda _: RayEngine())


def test_a_killed_worker_and_a_lost_node_cost_nothing_but_time(cluster, tmp_path):
    root = photos(tmp_path / "photos")
    (root / "person 0" / "x.jpg").write_bytes(b"kill this")
    opts = options(root, Failing(orders=orders(tmp_path, kill=1), pause_s=0.05))

    class Losing(RayEngine):
        def run(self, task, units):
            for number, outcome in enumerate(super().run(task, units)):
                if number == 1 and len(cluster.worker_nodes) == 1:
                    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
                yield outcome

    run(tmp_path / "out", opts, Losing())
    assert not cluster.worker_nodes
    assert rejects(tmp_path / "out") == {}
    assert len(samples(tmp_path / "out")) == 55
    run(tmp_path / "one", opts)
    assert content(tmp_path / "out") == content(tmp_path / "one")
