"""A run of one rank in the test's own process."""

from dataclasses import replace

import torch

from dist_train.config import load_config
from dist_train.runtime.ranks import Ranks
from dist_train.train.build import build_recognition, open_training
from tests.launch.recipes import write_recipe

ALONE = Ranks(0, 0, 1, torch.device("cpu"))


def trainer(tmp_path, data, checkpoint=None, rank=None, program=build_recognition, **overrides):
    """The loop of a tiny recipe; `section__key=value` changes it. Micro-batches of 24 by default."""
    overrides = {"train__micro_batch_size": 24} | overrides
    config = load_config(write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "run", **overrides))
    torch.set_num_threads(1)
    config.run_dir.mkdir(exist_ok=True)
    (config.run_dir / "config.yaml").write_text((tmp_path / "recipe.yaml").read_text())
    return open_training(config, ALONE if rank is None else replace(ALONE, **rank), checkpoint, program)


def losses(trainer, steps):
    """Of the next steps."""
    batches = iter(trainer.loader)
    return [float(trainer.train_step(next(batches))) for _ in range(steps)]
