"""Runs that heads start from, without training: a head after two steps, in a run directory as training writes it."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor

from dist_train.checkpoint.store import Progress, write_checksums, write_progress
from dist_train.config import RunConfig, dump_config
from dist_train.head import Head

DIM = 8


def recipe(run_dir: Path, data: Path, head: dict, start: dict | None = None, dim: int = DIM) -> RunConfig:
    return RunConfig.model_validate(
        {
            "run_dir": run_dir,
            "data": {"path": str(data), "cache_dir": str(data.parent / "cache")},
            "backbone": {"name": "tiny", "embedding_dim": dim},
            "head": head,
            "start": start or {},
            "train": {"steps": 4, "global_batch_size": 12, "device": "cpu"},
        }
    )


def build(config: RunConfig, classes: int, rank: int = 0, world_size: int = 1, seed: int = 1) -> Head:
    settings = config.head
    if settings.storage == "mmap":
        settings = settings.model_copy(update={"storage_dir": config.run_dir / f"rows-{world_size}"})
    where = {"group": None, "rank": rank, "world_size": world_size, "device": torch.device("cpu")}
    return Head(settings, classes, config.backbone.embedding_dim, **where, seed=seed)


def train(head: Head, rank: int = 0, world_size: int = 1) -> None:
    for number in range(2):
        generator = torch.Generator().manual_seed(number)
        embeddings = torch.randn(6, head.embedding_dim, generator=generator) * 3
        labels = torch.randint(0, head.num_classes, (6,), generator=generator)
        mine = slice(rank * 6 // world_size, (rank + 1) * 6 // world_size)
        head(embeddings[mine].requires_grad_(), labels[mine]).backward()
        head.step(0.2)


def write_names(directory: Path, names: list[str]) -> None:
    """Label and name, in the order of labels from the last to the first."""
    labels = list(range(len(names)))[::-1]
    table = pa.table({"label": labels, "name": [names[label] for label in labels]})
    pq.write_table(table, directory / "identities.parquet")


def write_run(config: RunConfig, names: list[str], rank: int = 0, world_size: int = 1) -> dict[str, Tensor]:
    """The run of `config` on every rank; this rank's tables and, as `margin.NAME`, averages."""
    head = build(config, len(names), rank, world_size)
    train(head, rank, world_size)
    checkpoint = config.run_dir / "checkpoints" / "step-00000002"
    if rank == 0:
        checkpoint.mkdir(parents=True)
        (config.run_dir / "config.yaml").write_text(dump_config(config))
        write_names(config.run_dir, names)
        write_progress(checkpoint, Progress(2, 24, 32, len(names), "0" * 64))
    if world_size > 1:
        dist.barrier()
    dcp.save({"head": head.state_dict()}, checkpoint_id=checkpoint, no_dist=world_size == 1)
    write_checksums(checkpoint, rank, world_size)
    found = {name: table.clone() for name, table in head.tables().items()}
    found |= {f"margin.{name}": value.clone() for name, value in head.margin.state().items()}
    head.close()
    return found
