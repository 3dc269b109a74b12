"""Small sets and networks whose embeddings are known in advance."""

import hashlib
import io
import json
import tarfile

import cv2
import numpy as np
import torch

from dist_train.data.index import Member, format_index
from dist_train.data.manifest import Manifest, Shard


def color_picture(color, size=16):
    """An encoded picture of one colour, red first."""
    picture = np.full((size, size, 3), color[::-1], dtype=np.uint8)
    return cv2.imencode(".png", picture)[1].tobytes()


def colors(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 3))


def embed_color(images):
    """The mean colour of each image, spread over eight dimensions: [B, 3, S, S] -> [B, 8]."""
    mixer = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    return images.mean(dim=(2, 3)) @ mixer


def write_role_set(directory, identities=12, views=3, size=16, shard_samples=10, roles=("gallery", "probe"), seed=1):
    """A set of `identities` colours; the first view is the gallery's, the others are probes a few levels off."""
    directory.mkdir(parents=True, exist_ok=True)
    base = colors(identities, seed)
    noise = np.random.default_rng(2).integers(-6, 7, (identities, views, 3))
    samples = [(i, v) for i in range(identities) for v in range(views)]
    shards = []
    for number, start in enumerate(range(0, len(samples), shard_samples)):
        name = f"set-{number:06d}.tar"
        rows = []
        with tarfile.open(directory / name, "w", format=tarfile.USTAR_FORMAT) as tar:
            for identity, view in samples[start : start + shard_samples]:
                color = np.clip(base[identity] + noise[identity, view], 0, 255)
                record = json.dumps({"role": roles[0] if view == 0 else roles[1]}).encode()
                members = (("png", color_picture(color, size)), ("cls", b"%d" % identity), ("json", record))
                row = []
                for extension, data in members:
                    info = tarfile.TarInfo(f"{identity:04d}-{view}.{extension}")
                    info.size = len(data)
                    row.append(Member(extension, tar.offset + tarfile.BLOCKSIZE, len(data), info.name))
                    tar.addfile(info, io.BytesIO(data))
                rows.append(row)
        (directory / name).with_suffix(".idx").write_text(format_index(rows))
        content = (directory / name).read_bytes()
        shards.append(Shard(name, len(rows), len(content), hashlib.sha256(content).hexdigest()))
    Manifest(size, identities, tuple(shards)).save(directory)
    return directory
