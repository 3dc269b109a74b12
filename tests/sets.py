"""Tiny shard sets for tests, written with nothing but tarfile and OpenCV."""

import hashlib
import io
import pickle
import tarfile
from pathlib import Path

import cv2
import numpy as np

from dist_train.data.index import Member, format_index
from dist_train.data.manifest import Manifest, Shard


def picture(label: int, view: int, size: int) -> np.ndarray:
    """A picture that a small net can learn to tell by label: smooth noise of the label plus some of the view."""
    base = np.random.default_rng(label).uniform(0, 255, (6, 6, 3))
    noise = np.random.default_rng([label, view]).uniform(-40, 40, (6, 6, 3))
    return cv2.resize(np.clip(base + noise, 0, 255).astype(np.uint8), (size, size), interpolation=cv2.INTER_CUBIC)


def write_set(
    directory: Path,
    classes: int = 10,
    views: int = 8,
    size: int = 32,
    shard_samples: int = 30,
    labels: list[int] | None = None,
) -> Manifest:
    """A set of `classes` × `views` pictures in shuffled order; `labels` overrides the label of every sample."""
    directory.mkdir(parents=True, exist_ok=True)
    samples = [(label, view) for label in range(classes) for view in range(views)]
    order = np.random.default_rng(0).permutation(len(samples))
    shards = []
    for number, start in enumerate(range(0, len(samples), shard_samples)):
        name = f"tiny-{number:06d}.tar"
        rows = []
        with tarfile.open(directory / name, "w", format=tarfile.USTAR_FORMAT) as tar:
            for index in order[start : start + shard_samples]:
                label, view = samples[index]
                encoded = cv2.imencode(".png", picture(label, view, size))[1].tobytes()
                written = label if labels is None else labels[index]
                row = []
                for extension, data in (("png", encoded), ("cls", str(written).encode())):
                    info = tarfile.TarInfo(f"{index:06d}.{extension}")
                    info.size = len(data)
                    row.append(Member(extension, tar.offset + tarfile.BLOCKSIZE, len(data), info.name))
                    tar.addfile(info, io.BytesIO(data))
                rows.append(row)
        (directory / name).with_suffix(".idx").write_text(format_index(rows))
        content = (directory / name).read_bytes()
        shards.append(Shard(name, len(rows), len(content), hashlib.sha256(content).hexdigest()))
    manifest = Manifest(size, classes, tuple(shards))
    manifest.save(directory)
    return manifest


def write_pairs(path: Path, pairs: int = 20, size: int = 32) -> None:
    """A verification set in InsightFace's form: same and different pairs in turn."""
    pictures, same = [], [number % 2 == 0 for number in range(pairs)]
    for number, equal in enumerate(same):
        for label in (number, number if equal else number + 100):
            pictures.append(cv2.imencode(".png", picture(label, len(pictures), size))[1].tobytes())
    path.write_bytes(pickle.dumps((pictures, same), protocol=2))
