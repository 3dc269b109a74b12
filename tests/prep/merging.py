"""Sets to merge, made without the project's writer, and what a set holds, read without its readers."""

import hashlib
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from typer.testing import CliRunner

from data_prep.cli import app
from dist_train.data.manifest import Manifest, load_manifest
from tests.data.sets import encode, picture, write_tar


def jpeg(seed: int, size: int = 32) -> bytes:
    return encode(picture(seed, size))


def table(folder: Path, names: list[str], counts: list[int]) -> None:
    columns = {"label": pa.array(range(len(names)), pa.int64()), "name": pa.array(names), "count": pa.array(counts)}
    pq.write_table(pa.table(columns), folder / "identities.parquet")


def made(folder: Path, names: list[str], each: int = 3, seed: int = 0, size: int = 32, shards: int = 2) -> Path:
    """A set with `each` pictures of everybody in `names`, dealt into shards in turn; key n has label n % names."""
    folder.mkdir(parents=True)
    dealt = [[] for _ in range(shards)]
    for number in range(each * len(names)):
        label = str(number % len(names)).encode()
        members = [(f"{number:06d}.jpg", jpeg(seed + number, size)), (f"{number:06d}.cls", label)]
        dealt[number % shards].append(members)
    entries = tuple(write_tar(folder / f"x-{at:06d}.tar", samples) for at, samples in enumerate(dealt))
    Manifest(size, len(names), entries).save(folder)
    table(folder, names, [each] * len(names))
    return folder


def merge(*arguments: object) -> str:
    """What the command prints, without processes of its own."""
    result = CliRunner().invoke(app, ["merge", *map(str, arguments), "--workers", "1"])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def members(folder: Path) -> dict[str, bytes]:
    """Every file in the tars of a set, by name; no name is there twice."""
    found = {}
    for shard in load_manifest(folder).shards:
        assert hashlib.sha256((folder / shard.name).read_bytes()).hexdigest() == shard.sha256
        with tarfile.open(folder / shard.name) as tar:
            for info in tar:
                assert info.name not in found
                found[info.name] = tar.extractfile(info).read()
    return found


def pictures(folder: Path) -> dict[bytes, str]:
    """Name of whom each picture shows."""
    names = pq.read_table(folder / "identities.parquet")["name"].to_pylist()
    found = members(folder)
    return {data: names[int(found[f"{name[:-4]}.cls"])] for name, data in found.items() if name.endswith(".jpg")}


def identities(folder: Path) -> list[tuple[int, str, int]]:
    """Label, name and count."""
    return [tuple(row.values()) for row in pq.read_table(folder / "identities.parquet").to_pylist()]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
