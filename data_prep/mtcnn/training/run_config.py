"""What one network of the cascade asks of the training loop, as the loop takes it."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from data_prep.mtcnn.training.config import DetectorRecipe, NetworkConfig
from data_prep.mtcnn.training.losses import KINDS, SHARES
from dist_train.config import CheckpointConfig, OptimizerConfig, RunConfig, TrackConfig, TrainConfig
from dist_train.data.config import AugmentConfig, DataConfig, SourceConfig


class CascadeConfig(RunConfig):
    """A recipe whose program is no recognition: it has neither backbone nor head, and their sections are not read."""

    program: Literal["cascade"] = Field("cascade", description="a network of the cascade")  # type: ignore[assignment]


def cascade_config(recipe: DetectorRecipe, network: NetworkConfig, crops: Path, run_dir: Path) -> CascadeConfig:
    """The loop's recipe for one network.

    Args:
        recipe: of the whole training.
        network: its section.
        crops: directory of its sets.
        run_dir: takes checkpoints and figures.
    """
    first, *further = ((str(crops / kind), float(share)) for kind, share in zip(KINDS, SHARES, strict=True))
    jitter = recipe.jitter
    return CascadeConfig(
        run_dir=run_dir,
        seed=recipe.seed,
        head=None,
        data=DataConfig(
            path=first[0],
            weight=first[1],
            mix=tuple(SourceConfig(path=path, weight=weight) for path, weight in further),
            backend="opencv",
            workers=recipe.workers,
            augment=AugmentConfig(flip=recipe.flip, brightness=jitter, contrast=jitter, saturation=jitter),
        ),
        train=TrainConfig(
            steps=network.steps,
            global_batch_size=network.batch,
            device=recipe.device,
            precision="float32",
            threads=recipe.threads,
            timeout_s=recipe.timeout_s,
        ),
        optimizer=OptimizerConfig(
            name=recipe.optimizer,
            lr=network.lr,
            weight_decay=recipe.weight_decay,
            decay_norms=False,
            warmup_steps=network.warmup_steps,
            clip_norm=10.0,
        ),
        checkpoint=CheckpointConfig(every_steps=recipe.checkpoint_steps),
        track=TrackConfig(wandb="disabled"),
    )
