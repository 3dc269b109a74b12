"""Sets of shards as training reads them: manifests, indexes, tars, identities."""

import hashlib
import io
import tarfile
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dist_train.data import inspect as looking
from dist_train.data.class_counts import class_counts
from dist_train.data.class_index import build_class_index, load_class_index
from dist_train.data.config import DataConfig
from dist_train.data.manifest import Manifest, load_manifest
from dist_train.data.order import ClassOrder
from dist_train.data.reader import ImageSet, SampleReader
from dist_train.data.remote import CachePolicy
from dist_train.data.shards import BadSampleError
from dist_train.data.sources import open_manifest, open_sources
from dist_train.data.verify import verify_shard
from dist_train.evaluate.sets import RoleSet
from dist_train.runtime.lock import Lock
from launch.embed.shards import ShardOrigin
from tests.data.sets import encode, make_set, picture, sample, write_tar
from tests.fuzz.formats import ARRAY, JSON, PARQUET, TAR
from tests.fuzz.mutations import TEXT
from tests.fuzz.reader import Reader, RefusedError, Scene, each_target, files_in

ADDRESS = "https://sets.example/faces"
MOST_SHARDS = 4  # looked at, of a manifest that lists more


@lru_cache
def set_files() -> dict[str, bytes]:
    """Two shards of three pictures of 16 pixels, with records, and a table of identities."""
    with tempfile.TemporaryDirectory() as scratch:
        make_set(Path(scratch), [3, 3], num_classes=3, size=16, records=True)
        pq.write_table(
            pa.table({"label": [0, 1, 2], "name": ["ann", "bob", "cy"], "count": [2, 2, 2]}),
            Path(scratch) / "identities.parquet",
        )
        return files_in(Path(scratch))


@lru_cache
def _roles() -> list[Scene]:
    """The same with two pictures in the gallery and four probes."""
    with tempfile.TemporaryDirectory() as scratch:
        roles = ["gallery", "probe", "probe"]
        shards = [
            write_tar(Path(scratch) / f"x-{i}.tar", [sample(n, n, 16, {"role": roles[n]}) for n in range(3)])
            for i in range(2)
        ]
        Manifest(16, 3, tuple(shards)).save(Path(scratch))
        return each_target(files_in(Path(scratch)), "x-0.tar")


def tar_of(members: list[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT) -> bytes:
    """A tar."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return sink.getvalue()


@lru_cache
def tars() -> list[Scene]:
    """Tars as others write them, of pictures of 16 pixels."""
    shots = [encode(picture(n, 16), ".jpg" if n % 2 else ".png") for n in range(4)]
    flat = [(f"{n:03d}.{kind}", data) for n in range(4) for kind, data in
            (("jpg" if n % 2 else "png", shots[n]), ("cls", b"%d" % (n % 2)))]  # fmt: skip
    records = [(f"d/{n}.{kind}", data) for n in range(4) for kind, data in
               (("jpg", shots[n]), ("json", b'{"label": %d, "role": "probe", "score": 0.5}' % n))]  # fmt: skip
    folders = [(f"p\u00e9rson {n % 2}/{n}.jpg", shots[n]) for n in range(4)]
    forms = ((flat, tarfile.USTAR_FORMAT), (records, tarfile.GNU_FORMAT), (folders, tarfile.PAX_FORMAT))
    found = [tar_of(members, form) for members, form in forms]
    return [Scene({"x.tar": data}, "x.tar") for data in found]


def look(home: Path) -> None:
    """What `data inspect`, `data verify` and a training run do with a set."""
    manifest = open_manifest(str(home))
    looking.describe(home, manifest)
    looking.contact_sheet(home, manifest, 1, 2, 0)
    for shard in manifest.shards[:MOST_SHARDS]:
        verify_shard(home, manifest, shard, decode_all=True, label_key="label")
    open_sources(DataConfig(path=str(home)))


def _read_samples(home: Path, address: str = "", policy: CachePolicy | None = None) -> None:
    """Samples as training reads them, without a look at checksums; of a set in `home`, or at an address."""
    manifest = load_manifest(home)
    reader = SampleReader([ImageSet(address or str(home), manifest)], "label", open_shards=1, policy=policy)
    refused = 0
    for shard, entry in enumerate(manifest.shards):
        for number in range(entry.samples):
            try:
                reader.read(shard, number, with_record=True)
            except BadSampleError:
                refused += 1
                reader.key(shard, number)
    reader.close()
    if refused:
        raise RefusedError(f"{refused} samples")


@lru_cache
def _cached() -> list[Scene]:
    """What a run with a set behind an address has left in its cache: shards, their indexes, files of locks."""
    files = set_files()
    folder = hashlib.sha256(ADDRESS.encode()).hexdigest()[:16]
    kept, stems = {"manifest.json": files["manifest.json"]}, []
    for name in (name for name in files if name.endswith(".tar")):
        stems.append(hashlib.sha256(files[name]).hexdigest()[:16])
        kept[f"cache/{folder}/{stems[-1]}.tar"] = files[name]
        kept[f"cache/{folder}/{stems[-1]}.idx"] = files[name.replace(".tar", ".idx")]
    locks = ["cache/.room.lock", f"cache/{folder}/.{stems[0]}.tar.lock"]
    kept |= dict.fromkeys(locks, b"process 7 on here\n")
    return each_target(kept, *(f"cache/{folder}/{stems[0]}.{kind}" for kind in ("tar", "idx")), *locks)


def _policy(home: Path) -> CachePolicy:
    return CachePolicy(home / "cache", limit_bytes=1 << 20, retries=0, timeout_s=1)


def _read_cache(home: Path) -> None:
    _read_samples(home, ADDRESS, _policy(home))
    for lock in (home / "cache").rglob("*.lock"):
        Lock(lock).close()


def _embed_origin(home: Path) -> None:
    origin = ShardOrigin(home, "label")
    for batch in origin.batches():
        origin.read(batch)
    origin.close()


def _read_index(home: Path) -> None:
    try:
        _read_samples(home)
    finally:
        _embed_origin(home)


def _read_identities(home: Path) -> None:
    _embed_origin(home)
    class_counts(open_sources(DataConfig(path=str(home), check_at_start=False)), retries=0)
    looking.describe(home, load_manifest(home))


def _read_roles(home: Path) -> None:
    RoleSet(home).close()


@lru_cache
def _class_indexed() -> list[Scene]:
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        manifest = make_set(home, [3, 3], num_classes=3, size=16)
        directory = build_class_index(ImageSet(str(home), manifest), "label", _policy(home))
        arrays = [f"{directory.relative_to(home)}/{name}" for name in ("members.npy", "starts.npy")]
        return each_target(files_in(home), *arrays)


def _read_class_index(home: Path) -> None:
    source = ImageSet(str(home), load_manifest(home))
    members, starts = load_class_index(build_class_index(source, "label", _policy(home)))
    order = ClassOrder(members, starts, [3, 3], per_class=2, seed=0, global_batch=4)
    places = order.locate(np.arange(12))
    if len(places.shard) and not 0 <= int(places.shard.min()) <= int(places.shard.max()) < 2:
        raise AssertionError(f"samples in shards {places.shard.tolist()} of 2")


READERS = (
    Reader("manifest.json", lambda: [Scene(set_files(), "manifest.json")], look, JSON),
    Reader("shard index", lambda: [Scene(set_files(), "x-000000.idx")], _read_index, TEXT),
    Reader("shard", lambda: [Scene(set_files(), "x-000000.tar")], _read_samples, TAR),
    Reader("cache of an address", _cached, _read_cache, TAR + TEXT),
    Reader("tars adopted", lambda: tars()[:2], look, TAR),
    Reader("tars embedded", tars, _embed_origin, TAR),
    Reader("roles of a set", _roles, _read_roles, TAR, weight=0.5),
    Reader("identities.parquet", lambda: [Scene(set_files(), "identities.parquet")], _read_identities, PARQUET),
    Reader("class index", _class_indexed, _read_class_index, ARRAY),
)
