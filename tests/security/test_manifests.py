"""Manifests of others: names stay in their directory, every number is one, and one line says which is not."""

import json
import shutil

import pytest

from dist_train.data.config import DataConfig
from dist_train.data.loader import build_loader
from dist_train.data.manifest import MAX_BYTES, load_manifest, parse_manifest
from dist_train.data.remote import CachePolicy, ShardCache
from dist_train.errors import UserError, WorkError
from tests.data.sets import make_set
from tests.data.test_remote import Server
from tests.launch.recipes import headcount_here

NAMES = {
    "../x.tar": "leads to another directory",
    "../../../.bashrc": "leads to another directory",
    "/etc/x.tar": "leads to another directory",
    "a/x.tar": "leads to another directory",
    "..\\x.tar": "leads to another directory",
    "..": "leads to another directory",
    "": "is empty",
    "a\0.tar": "has control characters",
    "a\n.tar": "has control characters",
    "a\x1b[2J.tar": "has control characters",
    "a\x9b.tar": "has control characters",
    "x" * 300 + ".tar": "is 304 bytes long",
    ".bashrc": "ends in .tar",
    ".x.tar": "not a hidden one",
    "x-000000.idx": "ends in .tar",
}


@pytest.fixture
def directory(tmp_path):
    make_set(tmp_path / "set", [4, 4])
    return tmp_path / "set"


def change(directory, place, value):
    """Change one value of the manifest, `place` being the keys that lead to it."""
    path = directory / "manifest.json"
    body = at = json.loads(path.read_text())
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    path.write_text(json.dumps(body))


@pytest.mark.parametrize("name", NAMES)
def test_a_shard_that_would_lie_elsewhere_is_refused_by_name(directory, tmp_path, name):
    change(directory, ("shards", 0, "name"), name)
    done = headcount_here("data", "inspect", directory)
    assert done.returncode == 2, done.stdout
    assert NAMES[name] in done.stderr
    assert str(directory / "manifest.json") in done.stderr
    assert done.stderr.count("\n") == 1
    assert "\x1b" not in done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_a_shard_behind_an_address_is_written_nowhere_but_in_the_cache(directory, tmp_path, name):
    shutil.copy(directory / "x-000000.tar", tmp_path / "x.tar")
    before = sorted(path for path in tmp_path.rglob("*") if path != directory / "manifest.json")
    change(directory, ("shards", 0, "name"), name)
    with Server(directory) as server:
        settings = DataConfig(path=server.url, cache_dir=str(tmp_path / "cache" / "a" / "b"), workers=0, retries=0)
        with pytest.raises(UserError, match=f"{server.url}/manifest.json: .*"):
            build_loader(settings, 4, 0, 1, seed=0)
    assert sorted(path for path in tmp_path.rglob("*") if path != directory / "manifest.json") == before


def test_the_cache_itself_takes_no_name_that_leads_out(directory, tmp_path):
    cache = ShardCache("http://127.0.0.1:9", CachePolicy(tmp_path / "cache", 1 << 30, 0, 1.0))
    shard = load_manifest(directory).shards[0]
    for name in ("../x.tar", "/x.tar", ".."):
        with pytest.raises(UserError, match="leads to another directory"):
            cache.fetch(type(shard)(name, shard.samples, shard.bytes, shard.sha256))
    assert not (tmp_path / "cache").exists()


def test_a_link_in_the_cache_is_replaced_and_not_followed(directory, tmp_path):
    shard = load_manifest(directory).shards[0]
    precious = tmp_path / "precious.tar"
    precious.write_bytes(bytes(shard.bytes))  # of the right size, so that it could pass for the shard
    with Server(directory) as server:
        cache = ShardCache(server.url, CachePolicy(tmp_path / "cache", 1 << 30, 0, 1.0))
        folder = cache.fetch(load_manifest(directory).shards[1]).parent
        name = f"{shard.sha256[:16]}.tar"
        for link in (name, f".{name}.part"):
            (folder / link).symlink_to(precious)
        path = cache.fetch(shard)
    assert path == folder / name
    assert path.read_bytes() == (directory / shard.name).read_bytes()
    assert not path.is_symlink()
    assert precious.read_bytes() == bytes(shard.bytes)


def test_making_room_deletes_no_tars_but_the_caches_own(directory, tmp_path):
    manifest = load_manifest(directory)
    others = tmp_path / "cache" / "my sets" / "x.tar"
    others.parent.mkdir(parents=True)
    others.write_bytes(bytes(1 << 20))
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "y.tar").write_bytes(bytes(1 << 20))
    (tmp_path / "cache" / "0123456789abcdef").symlink_to(linked)
    with Server(directory) as server:
        cache = ShardCache(server.url, CachePolicy(tmp_path / "cache", manifest.shards[0].bytes + 10, 0, 1.0))
        for shard in manifest.shards:
            folder = cache.fetch(shard).parent
        held = [path.name for path in folder.glob("*.tar")]
        small = ShardCache(server.url, CachePolicy(tmp_path / "small", 10, 0, 1.0))
        with pytest.raises(WorkError, match=r"data.cache_gb=1e-08: a shard of .* takes .* GB; give it more"):
            small.fetch(manifest.shards[0])
    assert held == [f"{manifest.shards[1].sha256[:16]}.tar"]
    assert others.exists()
    assert (linked / "y.tar").exists()


VALUES = {
    ("version",): [2, "1", True, 1.0, None, 1e400, [1]],
    ("image_size",): [0, -1, True, "64", 64.5, 1e400, 10**400, 10**6, None, {}],
    ("num_classes",): [0, -5, False, "5", 1e400, 10**30, float("nan")],
    ("shards",): [None, {}, 5, [], "x"],
    ("shards", 1): [5, None, [], "x"],
    ("shards", 1, "samples"): [-1, True, "4", 1e999, 10**30, 4.5],
    ("shards", 1, "bytes"): [-1, True, "4", 1e999, 10**30],
    ("shards", 1, "sha256"): ["", "x", "\ud800", 5, "A" * 64],
    ("shards", 1, "name"): [5, None, ["x.tar"], "\ud800"],
}


@pytest.mark.parametrize("place", VALUES)
def test_a_value_of_another_kind_is_named_with_its_place(directory, place):
    for value in VALUES[place]:
        change(directory, place, value)
        with pytest.raises(UserError) as refused:
            load_manifest(directory)
        told = str(refused.value)
        name = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place).lstrip(".")
        assert told.startswith(f"{directory / 'manifest.json'}: "), told
        assert len(told) < 400
        assert len(told.splitlines()) == 1
        assert any(word in told for word in (name, "not JSON", "holds? 0 samples", "the set is empty")), (value, told)


def test_a_shard_that_is_listed_twice_is_refused(directory):
    body = json.loads((directory / "manifest.json").read_text())
    change(directory, ("shards",), body["shards"] + body["shards"][:1])
    with pytest.raises(UserError, match=r"shard 'x-000000.tar' is listed twice"):
        load_manifest(directory)


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"\xff\xfe{}",
        b'{"version": 1, "image_size"\x80',
        b"",
        b"5",
        b"9" * 10_000,
        b'"\\ud800"',
        b'{"version": 1, "x": [' + b"1," * (9 << 20) + b"1]}",
    ],
    ids=range(9),
)
def test_a_file_that_is_no_manifest_is_refused_in_one_line(directory, content):
    (directory / "manifest.json").write_bytes(content)
    done = headcount_here("data", "inspect", directory)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "manifest.json: " in done.stderr


def test_a_manifest_larger_than_any_is_not_read(directory):
    with (directory / "manifest.json").open("wb") as file:
        file.truncate(1 << 40)  # a hole: no such disk is needed
    with pytest.raises(UserError, match=rf"1099511627776 bytes, expected at most {MAX_BYTES}"):
        load_manifest(directory)


def test_the_largest_manifest_of_all_is_read():
    entry = '{"name": "%06d.tar", "samples": 10000, "bytes": 100000000, "sha256": "%064d"}'
    shards = ", ".join(entry % (number, number) for number in range(200_000))
    text = f'{{"version": 1, "image_size": 112, "num_classes": 40000000, "shards": [{shards}]}}'
    assert parse_manifest(text.encode(), "manifest.json").samples == 2_000_000_000
