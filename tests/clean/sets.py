"""Embeddings with faults that are known, and a set on disk with one of each kind."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dist_train.data.manifest import Manifest
from tests.data.sets import Members, encode, write_tar
from tests.sets import picture

DIM = 24
PEOPLE, VIEWS = 12, 6
SIZE = 32


def people(count: int, views: int, spread: float = 0.5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit rows of `views` pictures of `count` people about random directions, and whom each shows."""
    random = np.random.default_rng(seed)
    centers = random.normal(size=(count, DIM))
    shown = np.repeat(np.arange(count), views)
    rows = centers[shown] / np.sqrt(DIM) + spread * random.normal(size=(len(shown), DIM)) / np.sqrt(DIM)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return torch.from_numpy(rows.astype(np.float32)), torch.from_numpy(shown)


def sample(key: str, label: int, pixels: np.ndarray, extension: str = ".png") -> Members:
    return [
        (f"{key}{extension}", encode(pixels, extension)),
        (f"{key}.cls", str(label).encode()),
        (f"{key}.json", json.dumps({"camera": key}).encode()),
    ]


def faulty_set(folder: Path) -> Path:
    """A set of `PEOPLE` with `VIEWS` pictures each, in two shards, and three faults.

    The picture `wrong` of person 0 has label 1; `copy` is a JPEG of person 2's first picture; person 3's second half
    has the label `PEOPLE`.
    """
    folder.mkdir(parents=True)
    samples = []
    for person in range(PEOPLE):
        for view in range(VIEWS):
            label = PEOPLE if person == 3 and view >= VIEWS // 2 else person
            samples.append(sample(f"p{person:02d}-{view}", label, picture(person, view, SIZE)))
    samples.insert(20, sample("wrong", 1, picture(0, 99, SIZE)))
    samples.insert(50, sample("copy", 2, picture(2, 0, SIZE), ".jpg"))
    shards = [write_tar(folder / f"x-{n}.tar", part) for n, part in enumerate((samples[:40], samples[40:]))]
    counts = np.bincount([int(members[1][1]) for members in samples]).tolist()
    table = pa.table(
        {
            "label": range(PEOPLE + 1),
            "name": [f"person {n}" for n in range(PEOPLE + 1)],
            "count": counts,
            "group": ["a" if n % 2 else "b" for n in range(PEOPLE + 1)],
        }
    )
    pq.write_table(table, folder / "identities.parquet")
    Manifest(SIZE, PEOPLE + 1, tuple(shards)).save(folder)
    return folder
