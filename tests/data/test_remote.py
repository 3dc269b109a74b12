"""Sets behind an address, from a real HTTP server that misbehaves."""

import contextlib
import functools
import hashlib
import http.server
import threading
import time
from collections import Counter

import pytest

from dist_train.data.config import DataConfig
from dist_train.data.loader import build_loader
from dist_train.data.manifest import Shard, load_manifest
from dist_train.data.remote import Prefetcher, ShardCache, cache_policy
from dist_train.data.shards import BadSampleError
from dist_train.errors import UserError, WorkError
from dist_train.runtime.lock import Lock
from tests.data.sets import make_set


class Server(http.server.ThreadingHTTPServer):
    """Serves a directory; `trouble` maps a file's name to what goes wrong with it, each time it is asked for."""

    daemon_threads = True

    def __init__(self, directory) -> None:
        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=str(directory)))
        self.trouble: dict[str, list[str]] = {}
        self.asked: Counter[str] = Counter()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.shutdown()
        self.server_close()


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        name = self.path.lstrip("/")
        self.server.asked[name] += 1
        troubles = self.server.trouble.get(name, [])
        trouble = troubles.pop(0) if troubles else ""
        if trouble == "error":
            self.send_error(503)
            return
        if not trouble:
            super().do_GET()
            return
        file = self.translate_path(self.path)
        with open(file, "rb") as opened:
            data = opened.read()
        if trouble == "other":
            data = data[:-1] + bytes([data[-1] ^ 1])
        self.send_response(200)
        self.send_header("Content-Length", str(len(data) + (10 if trouble == "short" else 0)))
        self.end_headers()
        if trouble == "cut":  # the connection ends in the middle
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.close_connection = True
            return
        if trouble == "endless":
            with contextlib.suppress(ConnectionError):
                for byte in data:
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                    time.sleep(0.05)
            self.close_connection = True
            return
        if trouble == "drip":
            for start in range(0, len(data), 4096):
                self.wfile.write(data[start : start + 4096])
                self.wfile.flush()
                time.sleep(0.02)
            return
        self.wfile.write(data)
        self.close_connection = True


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr("dist_train.data.remote._FIRST_PAUSE_S", 0.01)
    make_set(tmp_path / "set", [20, 20, 20])
    with Server(tmp_path / "set") as server:
        yield server


def config(server, tmp_path, **settings) -> DataConfig:
    settings = {"retries": 3, "workers": 0, "timeout_s": 20.0, "max_bad_fraction": 1.0} | settings
    return DataConfig(path=server.url, cache_dir=str(tmp_path / "cache"), **settings)


def labels(settings: DataConfig, steps: int = 6, batch: int = 10) -> list[list[int]]:
    with build_loader(settings, batch, 0, 1, seed=3) as loader:
        return [next(loader).labels.tolist() for _ in range(steps)]


def expected(tmp_path) -> list[list[int]]:
    return labels(DataConfig(path=str(tmp_path / "set"), workers=0))


def test_a_set_behind_an_address_gives_what_the_directory_gives_and_is_fetched_once(server, tmp_path):
    assert labels(config(server, tmp_path)) == expected(tmp_path)
    assert labels(config(server, tmp_path)) == expected(tmp_path)
    assert [server.asked[f"x-{i:06d}.tar"] for i in range(3)] == [1, 1, 1]


@pytest.mark.parametrize("trouble", ["error", "cut", "short", "other", "drip"])
def test_a_server_that_fails_twice_is_asked_again(server, tmp_path, trouble):
    server.trouble = {"x-000001.tar": [trouble, trouble], "manifest.json": ["error", "error"]}
    assert labels(config(server, tmp_path)) == expected(tmp_path)


@pytest.mark.job
def test_worker_processes_share_the_cache(server, tmp_path):
    server.trouble = {f"x-{i:06d}.tar": ["drip"] for i in range(3)}
    assert labels(config(server, tmp_path, workers=2)) == expected(tmp_path)
    assert [server.asked[f"x-{i:06d}.tar"] for i in range(3)] == [1, 1, 1]


def test_a_shard_that_never_is_what_the_manifest_says_costs_its_samples(server, tmp_path):
    server.trouble = {"x-000001.tar": ["other"] * 100}
    log = tmp_path / "bad.jsonl"
    with build_loader(config(server, tmp_path), 10, 0, 1, seed=3, bad_samples_path=log) as loader:
        for _ in range(6):
            next(loader)
        assert loader.bad_samples == 20
    assert "x-000001.tar: sha256" in log.read_text()


def test_a_server_that_is_gone_ends_the_run_with_its_address(server, tmp_path):
    server.trouble = {f"x-{i:06d}.tar": ["cut"] * 1000 for i in range(3)}
    begin = time.monotonic()
    with pytest.raises(WorkError, match=rf"{server.url}/x-00000\d.tar: no success in 4 tries"):
        labels(config(server, tmp_path))
    assert time.monotonic() - begin < 20, "a hang"


def test_no_server_at_all_is_said_before_training(server, tmp_path):
    server.shutdown()
    server.server_close()
    with pytest.raises(WorkError, match=r"manifest.json: no success in 4 tries"):
        labels(config(server, tmp_path))


def test_an_address_without_a_set_is_a_mistake_in_the_path(server, tmp_path):
    (tmp_path / "set" / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"no manifest.json at this address; correct data.path"):
        labels(config(server, tmp_path))


def test_a_cache_too_small_for_two_windows_is_said_with_both_sizes(server, tmp_path):
    with pytest.raises(UserError, match=r"data.cache_gb=1e-06: two windows of shards take .* lower data.window_shards"):
        labels(config(server, tmp_path, cache_gb=1e-6))


def test_the_cache_stays_within_its_limit(server, tmp_path):
    size = max(file.stat().st_size for file in (tmp_path / "set").glob("*.tar"))
    limit = config(server, tmp_path, cache_gb=2.1 * size / 1e9, window_shards=1)
    assert labels(limit, steps=12) == labels(DataConfig(path=str(tmp_path / "set"), workers=0, window_shards=1), 12)
    held = sum(file.stat().st_size for file in (tmp_path / "cache").rglob("*.tar"))
    assert 0 < held <= 2.1 * size


def test_naming_every_shard_at_every_step_costs_no_time(tmp_path):
    prefetcher = Prefetcher(lambda shard: None, lambda: None)
    shards = list(range(20_000))
    prefetcher.want(shards)
    begin = time.monotonic()
    prefetcher.want(shards)
    assert time.monotonic() - begin < 1, "classes by the batch name all shards at each step"
    prefetcher.close()


def test_a_set_that_is_written_anew_under_its_address_is_fetched_anew(server, tmp_path):
    before, sizes = labels(config(server, tmp_path)), [shard.bytes for shard in load_manifest(tmp_path / "set").shards]
    make_set(tmp_path / "set", [20, 20, 20], num_classes=3)  # other labels in files of the same sizes
    assert [shard.bytes for shard in load_manifest(tmp_path / "set").shards] == sizes
    assert labels(config(server, tmp_path)) == expected(tmp_path) != before


def test_leftovers_of_killed_downloads_are_deleted_and_those_under_way_are_not(server, tmp_path):
    cache = ShardCache(server.url, cache_policy(config(server, tmp_path)))
    first, second, _ = load_manifest(tmp_path / "set").shards
    folder = cache.fetch(first).parent
    for name in ("dead", "live"):
        (folder / f".{name}.tar.part").write_bytes(b"half")
    with Lock(folder / ".live.tar.lock"):
        cache.fetch(second)
    assert [path.name for path in folder.glob(".*.part")] == [".live.tar.part"]


def test_a_shard_that_is_no_tar_is_a_bad_one_and_leaves_nothing(server, tmp_path):
    data = b"no tar" * 2000
    (tmp_path / "set" / "no.tar").write_bytes(data)
    cache = ShardCache(server.url, cache_policy(config(server, tmp_path)))
    with pytest.raises(BadSampleError, match=rf"{server.url}/no\.tar: "):
        cache.fetch(Shard("no.tar", 4, len(data), hashlib.sha256(data).hexdigest()))
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.stat().st_size] == []


@pytest.mark.parametrize("trouble", ["error", "endless"])
def test_closing_breaks_off_pauses_and_downloads_in_threads_that_no_process_waits_for(
    server, tmp_path, monkeypatch, trouble
):
    for name in ("_FIRST_PAUSE_S", "_LONGEST_PAUSE_S"):
        monkeypatch.setattr(f"dist_train.data.remote.{name}", 3600.0)
    shards = [f"x-{i:06d}.tar" for i in range(3)]
    server.trouble = {shard: [trouble] * 10 for shard in shards}
    with build_loader(config(server, tmp_path), 10, 0, 1, seed=3):
        while any(not server.asked[shard] for shard in shards):
            time.sleep(0.01)
        threads = [thread for thread in threading.enumerate() if thread.name.startswith("shards")]
    for thread in threads:
        thread.join(60)
    assert threads
    assert all(thread.daemon and not thread.is_alive() for thread in threads)
    assert not list((tmp_path / "cache").rglob(".*.part"))
