"""Training as `headcount train` builds it: over a tiny set made on the spot, or over random pictures on the device."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch

from dist_train.config import RunConfig
from dist_train.data.batch import Batch
from dist_train.data.loader import Loader
from dist_train.runtime.ranks import Ranks
from dist_train.runtime.verdict import Ruling, Verdict
from dist_train.track.meter import Meter
from dist_train.train.build import Setting, build_recognition, open_training
from dist_train.train.loop import Loop
from dist_train.train.recognition import Recognition
from tests.sets import write_set


def alone(device: torch.device) -> Ranks:
    """This process as the only rank."""
    return Ranks(0, 0, 1, torch.device("cuda", 0) if device.type == "cuda" else device)


def plain_products(head: dict[str, Any]) -> dict[str, Any]:
    """The section `head` with products in float32."""
    return head | {"arithmetic": "float32"}


def recipe(folder: Path, **sections: Any) -> RunConfig:
    """The configuration of a run in `folder`; sections are merged into a small one's."""
    tree: dict[str, Any] = {
        "run_dir": folder / "run",
        "data": {"path": str(folder / "set"), "workers": 0, "backend": "opencv"},
        "backbone": {"name": "mobilefacenet", "embedding_dim": 128},
        "head": {"scale": 32.0},
        "train": {"steps": 1000, "global_batch_size": 32, "micro_batch_size": 32, "log_every": 1},
        "optimizer": {"lr": 0.01},
        "checkpoint": {"every_steps": 100_000},
        "track": {"wandb": "disabled"},
        "export": {"onnx": False},
    }
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section} if isinstance(section, dict) else section
    return RunConfig.model_validate(tree)


@contextmanager
def opened(config: RunConfig, device: torch.device, checkpoint: Path | None = None) -> Iterator[Loop]:
    """A run on this device, over a set of 320 pictures that is made if it is not there."""
    path = Path(config.data.path)
    if not path.exists():
        write_set(path, classes=40, views=8, size=config.data.image_size or 112, shard_samples=100)
    config.run_dir.mkdir(parents=True, exist_ok=True)
    loop = open_training(config, alone(device), checkpoint)
    try:
        yield loop
    finally:
        loop.close()


def synthetic(folder: Path, device: torch.device, classes: int, image_size: int, **sections: Any) -> Recognition:
    """A program without a set: its pictures are random ones that are on the device already."""
    config = recipe(folder, **sections)
    manifest = SimpleNamespace(num_classes=classes, image_size=image_size)
    loader = cast(Loader, SimpleNamespace(image_size=image_size, manifest=manifest, sources=None, steps_per_epoch=1000))
    meter = Meter(config.train.global_batch_size, device)
    return build_recognition(Setting(config, alone(device), loader, 1, meter.time, 0, False, {}, Verdict(device)))


def random_batch(device: torch.device, samples: int, classes: int, image_size: int) -> Batch:
    """Pictures of noise on the device, with their labels there and on the host."""
    images = torch.rand(samples, 3, image_size, image_size, device=device) * 2 - 1
    labels = torch.randint(0, classes, (samples,))
    zeros = torch.zeros(samples, dtype=torch.int64)
    return Batch(images, labels.to(device), torch.arange(samples), labels, zeros)


class Steps:
    """Whole steps as the loop makes them between two that are logged: on a GPU a step's verdict is read in the next.

    Args:
        program: that `synthetic` has made.
        batch: of every step.
    """

    def __init__(self, program: Recognition, batch: Batch) -> None:
        self._program, self._batch = program, batch
        self._unruled: Ruling | None = None

    def __call__(self) -> torch.Tensor:
        """Make a step; its loss [].

        Raises:
            NonFiniteError: the step before was refused, or this one where verdicts are read at once.
        """
        self._program.begin()
        loss = self._program.micro_step(self._batch, last=True)
        self.settle()  # the device has the work up to here before it
        self._program.update(1e-4, measure=False)
        self._unruled = self._program._verdict.rule()
        return loss

    def settle(self) -> None:
        """Read the verdict on the last step.

        Raises:
            NonFiniteError: it was refused.
        """
        ruling, self._unruled = self._unruled, None
        if ruling is not None and (refusal := ruling.refusal()) is not None:
            raise refusal
