"""Makes small sets for tests: own code, so that the reader is not tested against the project's own writer."""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from dist_train.data.index import Member, format_index
from dist_train.data.manifest import Manifest, Shard

Members = list[tuple[str, bytes]]  # one sample: (name in the tar, bytes)


def picture(number: int, size: int = 32) -> np.ndarray:
    """A smooth picture, another for each number; [size, size, 3], red first."""
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)


def encode(image: np.ndarray, extension: str = ".jpg") -> bytes:
    options = [cv2.IMWRITE_JPEG_QUALITY, 95] if extension == ".jpg" else []
    done, data = cv2.imencode(extension, image[:, :, ::-1], options)
    assert done
    return data.tobytes()


def sample(number: int, label: int, size: int = 32, record: dict | None = None) -> Members:
    key = f"{number:08d}"
    members = [(f"{key}.jpg", encode(picture(number, size))), (f"{key}.cls", str(label).encode())]
    if record is not None:
        members.append((f"{key}.json", json.dumps(record).encode()))
    return members


def write_tar(path: Path, samples: Iterable[Members], index: bool = True) -> Shard:
    indexed = []
    count = 0
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for members in samples:
            count += 1
            line = []
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
                line.append(Member(name.split(".", 1)[1], tar.offset - (len(data) + 511) // 512 * 512, len(data), name))
            indexed.append(line)
    if index:
        path.with_suffix(".idx").write_text(format_index(indexed))
    data = path.read_bytes()
    return Shard(path.name, count, len(data), hashlib.sha256(data).hexdigest())


def make_set(
    directory: Path, shard_samples: list[int], num_classes: int = 5, size: int = 32, records: bool = False
) -> Manifest:
    """A set whose sample n (counted through the shards) shows `picture(n)` and has label n % num_classes."""
    directory.mkdir(parents=True, exist_ok=True)
    shards, number = [], 0
    for i, count in enumerate(shard_samples):
        numbers = range(number, number + count)
        number += count
        records_of = {n: {"number": n, "role": "probe"} if records else None for n in numbers}
        shards.append(
            write_tar(directory / f"x-{i:06d}.tar", [sample(n, n % num_classes, size, records_of[n]) for n in numbers])
        )
    manifest = Manifest(size, num_classes, tuple(shards))
    manifest.save(directory)
    return manifest
