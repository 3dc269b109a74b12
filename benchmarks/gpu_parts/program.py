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
    return build_recognition(Setting(config, alone(device), loader, 1, meter.time, 0, False, {}))


def random_batch(device: torch.device, samples: int, classes: int, image_size: int) -> Batch:
    """Pictures of noise on the device, with their labels there and on the host."""
    images = torch.rand(samples, 3, image_size, image_size, device=device) * 2 - 1
    labels = torch.randint(0, classes, (samples,))
    zeros = torch.zeros(samples, dtype=torch.int64)
    return Batch(images, labels.to(device), torch.arange(samples), labels, zeros)


def one_step(program: Recognition, batch: Batch, lr: float = 1e-4) -> torch.Tensor:
    """A whole step as the loop makes it, without its figures; the loss []."""
    program.begin()
    loss = program.micro_step(batch, last=True)
    program.update(lr, measure=False)
    return loss
