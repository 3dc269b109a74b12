"""A model and a source whose embeddings are known in advance, importable by other processes."""

import os
import signal
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from dist_train.data.reject import Reject
from dist_train.embed.job import embed_source
from dist_train.embed.pictures import Picture, Place
from dist_train.errors import WorkError
from dist_train.evaluate.models import Model

SIZE, DIM, PART_ROWS, BATCH = 4, 6, 10, 4


def embed_pixels(images):
    """Means of the left and the right half: [B, 3, S, S] -> [B, 6]; a mirrored picture gives them turned round."""
    halves = images.view(len(images), 3, SIZE, 2, SIZE // 2).mean(dim=(2, 4))  # [B, 3, 2]
    return halves.permute(0, 2, 1).reshape(-1, DIM)


def model(digest="a" * 64, embed=embed_pixels):
    return Model("standin", embed, SIZE, DIM, lambda: digest)


def pixels(number):
    return np.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


class Numbers:
    """Inputs first .. count - 1; every seventh has no face. `stop_at` fails, or kills the process, at that input."""

    def __init__(self, count=47, path="numbers", first=0, stop_at=None, kill=False, reason=None):
        self.count, self.path, self.stop_at, self.kill, self.reason = count, path, stop_at, kill, reason
        self.first, self.asked = first, []

    def described(self):
        return {"path": self.path, "align": False}

    def batches(self):
        for start in range(self.first, self.count, 7):
            yield pa.RecordBatch.from_pydict({"number": list(range(start, min(start + 7, self.count)))})

    def read(self, rows):
        return [self._one(row["number"]) for row in rows.to_pylist()]

    def _one(self, number):
        if number == self.stop_at:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise WorkError("stopped")
        self.asked.append(number)
        place = Place(f"pictures/{number:03d}", number * 512, 100)
        if self.reason or number % 7 == 3:
            return place, Reject(self.reason or "no face", f'in "{number}",\nnone')
        landmarks = np.arange(10, dtype=np.float32).reshape(5, 2) if number % 2 else None
        return place, Picture(pixels(number), f"person {number % 5}", number % 5, 0.5, 1, landmarks)

    def close(self):
        pass


def embed(out, source, **options):
    options = {"batch_size": BATCH, "part_rows": PART_ROWS, "quiet": True} | options
    return embed_source(options.pop("model", None) or model(), source, Path(out), **options)


def embed_on_rank(rank, world_size, out):
    """The same, as one of several ranks."""
    import torch.distributed as dist

    from dist_train.runtime.ranks import Ranks

    ranks = Ranks(rank, rank, world_size, torch.device("cpu"), dist.group.WORLD, dist.group.WORLD)
    source = Numbers()
    made = embed(out, source, ranks=ranks)
    return source.asked, None if made is None else made.count
