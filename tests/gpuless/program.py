"""Programs of training without files: a recipe, a set that is only described, and batches without pictures."""

from types import SimpleNamespace

import numpy as np
import torch

from dist_train.config import RunConfig
from dist_train.data.batch import Batch
from dist_train.runtime.ranks import Ranks
from dist_train.track.stopwatch import Stopwatch
from dist_train.train.batching import micro_batches
from dist_train.train.build import Setting, build_recognition


def recipe(**sections) -> RunConfig:
    """A recipe, whose directories are never looked at."""
    tree = {"run_dir": "/nowhere", "data": {"path": "/nowhere"}, **sections}
    tree["train"] = {"steps": 10, "precision": "bfloat16"} | tree["train"]
    return RunConfig.model_validate(tree)


def program(config: RunConfig, ranks: Ranks, identities: int, image_size: int = 112):
    """The program of a recipe as a run has it, and its number of micro-batches."""
    manifest = SimpleNamespace(num_classes=identities, samples=20 * identities)
    loader = SimpleNamespace(image_size=image_size, manifest=manifest, steps_per_epoch=1000, sources=[])
    accumulation = micro_batches(config, ranks.world_size)
    clock = Stopwatch(torch.device("cpu"))
    return build_recognition(Setting(config, ranks, loader, accumulation, clock, 0, True, {})), accumulation


def batch(pictures: int, image_size: int, device: torch.device) -> Batch:
    """A batch of the classes 0, 1, ..."""
    images = torch.empty(pictures, 3, image_size, image_size, device=device)
    labels = torch.from_numpy(np.arange(pictures))
    return Batch(images, labels.to(device), labels, labels, torch.from_numpy(np.zeros(pictures, np.int64)))


def step(trained, micro_batches: list[Batch], number: int) -> None:
    """One step of a program."""
    trained.enter(number)
    trained.begin()
    for part in micro_batches:
        trained.micro_step(part, last=part is micro_batches[-1])
    trained.update(0.0, measure=False)
