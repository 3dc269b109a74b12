"""Training a network to give the same embeddings in int8: the float network is the teacher, no labels are needed."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dist_train.errors import UserError, WorkError
from dist_train.evaluate.pictures import decoding, to_tensor
from dist_train.evaluate.sets import StoredSet
from dist_train.export.folded import folded_graph
from dist_train.export.onnx import cause_of
from dist_train.export.quantize import MIN_PICTURES
from dist_train.export.trace import quiet_exporter
from dist_train.runtime.progress import progress_bar

BATCH = 64
LR = 3e-5
"""Of Adam; after the first tenth of the steps it falls to 0 along half a cosine."""
KEPT = 0.5
"""Share of the steps after which the ranges of activations stay as they are."""
LEAST_STEPS = 11
"""Of 10 the first tenth is one step, in which no learning rate can rise; of 1 the ranges stay before there are any."""


def train_int8(
    network: nn.Module, image_size: int, pictures_from: Path, steps: int, *, flip: float = 0.0, quiet: bool = False
) -> nn.Module:
    """The network with weights and ranges that were trained to be rounded; `export_onnx` writes it in QDQ form.

    The loss is 1 - cosine of its embeddings and those of `network` in float32, in the mean over a batch.

    Args:
        network: images [B, 3, S, S] -> embeddings [B, D], in evaluation mode; left as it is.
        image_size: S, in pixels.
        pictures_from: a set of shards; pictures are drawn from it at random.
        steps: of 64 pictures; at least `LEAST_STEPS`.
        flip: probability that a picture is mirrored.
        quiet: show no bar.

    Raises:
        UserError: no such set, or a network that has no graph.
        WorkError: a damaged picture, or embeddings that are not finite.
    """
    with StoredSet(pictures_from, labelled=False) as stored, torch.enable_grad(), _quiet():
        from dist_train.export.fake_quantized import Converted, fake_quantized, keep_ranges

        try:
            student = fake_quantized(folded_graph(network, image_size))
        except Exception as error:  # torch.export's kinds have no common base
            raise UserError(f"--int8 trained: this network is no graph of operations: {cause_of(error)}") from error
        optimizer = torch.optim.Adam(student.parameters(), lr=LR)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, LR, total_steps=steps, pct_start=0.1, cycle_momentum=False
        )
        with progress_bar(total=steps, unit=" steps", desc="int8 training", disable=quiet) as bar:
            for step, images in enumerate(_batches(stored, image_size, steps, flip)):
                if step == round(KEPT * steps):
                    keep_ranges(student)
                with torch.no_grad():
                    wanted = network(images)
                if not torch.isfinite(wanted).all():
                    raise WorkError(
                        "--int8 trained: embeddings are not finite; the network is damaged or its training diverged"
                    )
                loss = 1 - nn.functional.cosine_similarity(student(images), wanted).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.set_postfix(loss=f"{loss.item():.2e}", refresh=False)
                bar.update()
        keep_ranges(student)
        with torch.no_grad():
            student(images)  # scales of the last weights
        return Converted(student).eval()


def check_pictures(directory: Path) -> None:
    """Refuse a set of fewer pictures than make a range.

    Raises:
        UserError: it is one, or no set.
    """
    with StoredSet(directory, labelled=False) as stored:
        if len(stored) < MIN_PICTURES:
            raise UserError(
                f"--calibrate {directory}: {len(stored)} pictures to train int8 on, expected at least {MIN_PICTURES}; "
                "give a larger set"
            )


def _batches(stored: StoredSet, image_size: int, steps: int, flip: float) -> Iterator[Tensor]:
    """Batches of random pictures float32 [B, 3, S, S] in [-1, 1], the same ones each time."""
    draws = np.random.default_rng(0)
    load = decoding(stored.read, image_size, f"set {stored.directory}")
    for _ in range(steps):
        images = to_tensor([load(int(number)) for number in draws.integers(len(stored), size=BATCH)])
        mirrored = torch.from_numpy(draws.random(BATCH) < flip)
        yield torch.where(mirrored[:, None, None, None], images.flip(3), images)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torchao's and the exporters' reports about themselves out of our log."""
    registry = logging.getLogger("torch.utils._pytree")
    level = registry.level
    registry.setLevel(logging.ERROR)
    try:
        with quiet_exporter(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        registry.setLevel(level)
