"""One pruning: a trained run in, a run directory with a smaller network out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dist_train.backbones import build_backbone
from dist_train.backbones.config import BackboneConfig
from dist_train.backbones.widths import layer_widths
from dist_train.checkpoint.load import found_checkpoint, load_backbone
from dist_train.checkpoint.lone import write_backbone
from dist_train.checkpoint.metadata import read_tensors
from dist_train.checkpoint.store import Progress, checkpoint_name
from dist_train.config import RunConfig, dump_config
from dist_train.errors import UserError, WorkError
from dist_train.export.pictures import stored_pictures
from dist_train.prune.channels import prune_channels
from dist_train.prune.embedding import embedding_importance, last_layers, shorten
from dist_train.prune.importance import first_order_gradients
from dist_train.prune.options import By, Scope
from dist_train.run_files import CHECKPOINTS_NAME, CONFIG_NAME, IDENTITIES_NAME
from dist_train.runtime.written import MAKE_ROOM, write_failures, write_json, write_text, written, written_directory
from dist_train.weights.centers import identity_names, plain_centers
from dist_train.weights.write import Blocks, write_safetensors

FIGURES_NAME = "prune.json"
CENTERS_NAME, NAMES_NAME = "pruned.centers.safetensors", f"pruned.{IDENTITIES_NAME}"


@dataclass(frozen=True)
class PruneJob:
    """What `headcount prune` was asked for; the options of that command."""

    run: Path
    out: Path
    keep: float
    scope: Scope
    by: By = By.magnitude
    pictures_from: Path | None = None
    images: int = 512
    multiple: int = 8


@dataclass(frozen=True)
class Size:
    """How large a network is.

    Attributes:
        parameters: numbers that training moves.
        flops: of one picture's forward pass, additions and products counted apart.
        embedding_dim: D.
    """

    parameters: int
    flops: int
    embedding_dim: int


@dataclass(frozen=True)
class Pruned:
    """What came of it.

    Attributes:
        before: the size of the network that was.
        after: of the smaller one.
        centers: file of the head's centers in the shorter form; None where embeddings are as long as before, there was
            no head, or nobody knows the names of its identities.
    """

    before: Size
    after: Size
    centers: Path | None


def prune_run(job: PruneJob) -> Pruned:
    """Make the smaller network and write it. What cannot work is found before anything is written.

    Raises:
        UserError: options that do not go together, no such checkpoint or set, or `out` exists.
        WorkError: a damaged checkpoint or picture, or a place that cannot be written.
    """
    _check(job)
    checkpoint = found_checkpoint(job.run).absolute()
    network, config, progress = load_backbone(checkpoint)
    side = progress.image_size
    pictures = None
    if job.pictures_from is not None:
        pictures = stored_pictures(job.pictures_from, side, job.images)
    kept = None
    if job.scope is Scope.embedding:
        smaller, section, kept = _shorter(job, network, config.backbone, side, pictures)
    else:
        smaller, section = _narrower(job, network, config.backbone, side, pictures)
    before, after = size_of(network, side), size_of(smaller, side)
    if before == after:
        raise UserError(
            f"--keep {job.keep:g}: nothing would be left out: with --multiple {job.multiple} every layer keeps all of "
            "its channels; take a smaller one"
        )
    made = config.model_copy(update={"backbone": section, "run_dir": job.out})
    names = None if kept is None else _names(checkpoint, config, progress)
    with write_failures(str(job.out), MAKE_ROOM), written_directory(job.out) as home:
        write_text(home / CONFIG_NAME, dump_config(made))
        write_backbone(home / CHECKPOINTS_NAME / checkpoint_name(progress.step), smaller, made, progress)
        if kept is not None and names is not None:
            _write_centers(home, plain_centers(checkpoint, config), names, kept)
        write_json(home / FIGURES_NAME, _about(job, checkpoint, progress, before, after))
    return Pruned(before, after, None if names is None else job.out / CENTERS_NAME)


def _check(job: PruneJob) -> None:
    if job.out.exists() and (not job.out.is_dir() or any(job.out.iterdir())):
        raise UserError(f"{job.out}: exists already; remove it, or name another")
    if (job.by is By.first_order) != (job.pictures_from is not None):
        raise UserError(
            "--by first-order measures on pictures: give a set of shards like those that the model will see, --set SET"
            if job.pictures_from is None
            else f"--set {job.pictures_from}: only --by first-order looks at pictures; add it, or leave --set out"
        )


def _shorter(
    job: PruneJob, network: nn.Module, section: BackboneConfig, side: int, pictures: Tensor | None
) -> tuple[nn.Module, BackboneConfig, Tensor]:
    """The network with shorter embeddings, its section of a recipe, and the numbers that were kept, sorted."""
    count = round(job.keep * section.embedding_dim)
    if count < 2:
        raise UserError(f"--keep {job.keep:g} of {section.embedding_dim} numbers leaves {count}; expected 2 or more")
    if count == section.embedding_dim:
        raise UserError(f"--keep {job.keep:g} of {section.embedding_dim} numbers leaves all; take a smaller one")
    full = section.model_copy(update={"channels": None})
    longer, shorter = (
        layer_widths(_on_meta(full.model_copy(update={"embedding_dim": dim}), side))
        for dim in (section.embedding_dim, count)
    )
    widths = section.channels and {  # of an earlier pruning: the layer that makes the embedding makes a shorter one now
        name: size if longer[name] == shorter[name] else (size[0], shorter[name][1])
        for name, size in section.channels.items()
    }
    new = section.model_copy(update={"embedding_dim": count, "channels": widths})
    smaller = build_backbone(new, side).eval()
    last_ones = last_layers(network, smaller)
    importance = embedding_importance(network, last_ones, job.by, pictures)
    kept = importance.argsort(descending=True, stable=True)[:count].sort().values
    shorten(network, last_ones, kept, smaller)
    return smaller, new, kept


def _narrower(
    job: PruneJob, network: nn.Module, section: BackboneConfig, side: int, pictures: Tensor | None
) -> tuple[nn.Module, BackboneConfig]:
    """The network with fewer channels, built from its new section, and that section."""
    gradients = None if pictures is None else first_order_gradients(network, pictures)
    pruned = prune_channels(network, side, job.keep, job.multiple, job.by, gradients)
    base = layer_widths(_on_meta(section.model_copy(update={"channels": None}), side))
    widths = {name: size for name, size in layer_widths(pruned).items() if size != base[name]}
    new = section.model_copy(update={"channels": widths or None})
    smaller = build_backbone(new, side).eval()
    smaller.load_state_dict(pruned.state_dict())
    probe = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        if not torch.allclose(smaller(probe), pruned(probe), rtol=1e-3, atol=1e-4):
            raise WorkError(
                f"{job.run}: this network cannot be built again from the widths of its layers; use --scope embedding"
            )
    return smaller, new


def _on_meta(section: BackboneConfig, side: int) -> nn.Module:
    with torch.device("meta"):
        return build_backbone(section, side)


def size_of(network: nn.Module, side: int) -> Size:
    """Parameters, FLOPs and embedding length of a network for pictures of `side` px."""
    picture = torch.zeros(1, 3, side, side)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        embedding = network(picture)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Size(parameters, counter.get_total_flops(), embedding.shape[1])


def _names(checkpoint: Path, config: RunConfig, progress: Progress) -> pa.Table | None:
    """Label and name of the head's classes; None without a head in the checkpoint, or where nobody knows the names."""
    if config.head is None or "head.centers" not in read_tensors(checkpoint):
        return None
    try:
        return identity_names(checkpoint, config, progress)
    except UserError:  # no head can be started from them
        return None


def _write_centers(home: Path, centers: Blocks, names: pa.Table, kept: Tensor) -> None:
    """The head's centers with the same numbers left out, as exported centers: `start.head` takes them."""
    shape = (*centers.shape[:-1], len(kept))
    blocks = (block.index_select(-1, kept) for block in centers.blocks)
    with written(home / CENTERS_NAME) as file:
        write_safetensors(file, {"centers": Blocks(shape, centers.dtype, blocks)}, {"producer": "headcount"})
    with written(home / NAMES_NAME) as file:
        pq.write_table(names, file)


def _about(job: PruneJob, checkpoint: Path, progress: Progress, before: Size, after: Size) -> dict[str, Any]:
    return {
        "run": checkpoint.parent.parent.name,
        "step": progress.step,
        "scope": job.scope.value,
        "keep": job.keep,
        "by": job.by.value,
        "multiple": job.multiple if job.scope is Scope.channels else None,
        "before": vars(before),
        "after": vars(after),
    }
