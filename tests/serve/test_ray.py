"""The application on a real Ray cluster of two nodes on this machine, a replica on each."""

import os
import socket
from pathlib import Path

import httpx
import numpy as np
import pytest
from pydantic import ValidationError

from tests.embed.models import SIZE, write_model
from tests.serve.services import Client, files, photo

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'headcount[ray]'")
pytest.importorskip("ray.serve", reason="Ray Serve is not installed: pip install 'headcount[ray]'")

from launch.serve.ray import NAME, Options, application  # noqa: E402 - once it is known that Ray is there

REPLICAS = 2
TOKEN = "0123456789abcdef"
ASKED = {"authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Address of the service, and the cluster."""
    from ray import serve
    from ray.cluster_utils import Cluster

    model = write_model(tmp_path_factory.mktemp("model") / "cells.onnx", SIZE)
    (token := model.with_name("token.txt")).write_text(TOKEN)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.getcwd())
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_SERVE_PROXY_PREFER_LOCAL_NODE_ROUTING", "0")  # so that both are asked in turn
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        second = cluster.add_node(num_cpus=1)
        try:
            ray.init(cluster.address, logging_level="ERROR")
            serve.start(http_options={"host": "127.0.0.1", "port": port, "location": "HeadOnly"})
            options = Options(model=model, token_file=token, align=False, max_waiting=8, replicas=REPLICAS)
            serve.run(application(options), name=NAME, route_prefix="/")
            yield f"http://127.0.0.1:{port}", cluster, second
            serve.shutdown()
        finally:
            ray.shutdown()
            cluster.shutdown()


def test_two_nodes_answer_as_one_process_does_and_refuse_what_it_refuses(served):
    at = served[0]
    assert ray.available_resources().get("CPU", 0) == 0  # a replica of one core on each node of one core
    with httpx.Client(base_url=at, timeout=60, headers=ASKED) as client, Client() as alone:
        about = client.get("/about").json()
        assert (about["image_size"], about["aligned"], about["enrolls"]) == (SIZE, False, False)
        for number in range(12):
            found = client.post("/embed", **files(photo=photo(number))).json()["faces"]
            expected = alone.ask("/embed", **files(photo=photo(number))).json()["faces"]
            for one, other in zip(found, expected, strict=True):  # of an ONNX file, and of the same network in torch
                assert np.allclose(one.pop("embedding"), other.pop("embedding"), atol=1e-5)
                assert one.pop("norm") == pytest.approx(other.pop("norm"), abs=1e-4)
                assert one == other
        same = client.post("/verify", **files(first=photo(1), second=photo(1))).json()
        assert same["cosine"] == pytest.approx(1, abs=1e-5)
        assert client.post("/embed", **files(photo=b"no picture")).status_code == 422
        assert client.post("/enroll", **files(photo=photo(1)), data={"identity": "Ann"}).status_code == 404
        for name in ("localhost", "elsewhere.example"):  # whatever a stranger calls the service
            stranger = httpx.post(f"{at}/embed", **files(photo=photo(1)), headers={"host": name}, timeout=60)
            assert stranger.status_code == 401
        text = client.get("/metrics").text  # of one of the two
        lines = [line for line in text.splitlines() if 'path="/embed"' in line and "requests_total" in line]
        assert 0 < sum(float(line.split()[-1]) for line in lines) < 12 + 3  # the other has answered the rest


def test_the_service_goes_on_when_a_node_is_lost(served):
    at, cluster, second = served
    cluster.remove_node(second, allow_graceful=False)
    with httpx.Client(base_url=at, timeout=60, headers=ASKED) as client:
        answers = []
        for _ in range(20):
            try:
                answers.append(client.post("/embed", **files(photo=photo(2))).status_code)
            except httpx.HTTPError:
                answers.append(0)
    assert answers[-5:] == [200] * 5, answers


def test_paths_are_those_of_where_the_command_was_typed():
    told = Options.model_validate(
        {"model": "runs/faces", "token_file": "token.txt", "align": "false", "replicas": "3", "input_range": "0..255"}
    )  # as `serve run` has them
    assert told.model == Path.cwd() / "runs" / "faces"
    assert (told.align, told.replicas) == (False, 3)


def test_a_wrong_argument_is_named():
    with pytest.raises(ValidationError, match="galery"):
        Options.model_validate({"model": "runs/faces", "token_file": "token.txt", "galery": "gallery"})
    with pytest.raises(ValidationError, match="replicas"):
        Options.model_validate({"model": "runs/faces", "token_file": "token.txt", "replicas": "none"})
    with pytest.raises(ValidationError, match="max_waiting"):
        Options.model_validate({"model": "runs/faces", "token_file": "token.txt", "max_waiting": "1"})
    with pytest.raises(ValidationError, match="token_file"):
        Options.model_validate({"model": "runs/faces"})
