"""An export: a backbone's weights with their model card and, if wanted, the class centers with their names."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from dist_train.backbones.config import BackboneConfig
from dist_train.checkpoint.load import load_backbone
from dist_train.data.manifest import IDENTITIES_NAME
from dist_train.errors import UserError
from dist_train.evaluate.calibration import Owner, read_calibration
from dist_train.runtime.written import MAKE_ROOM, write_failures, written
from dist_train.weights.average import average_backbones, choose_pictures, renew_statistics
from dist_train.weights.card import Card, Parent, card_path
from dist_train.weights.centers import identity_names, plain_centers
from dist_train.weights.digest import digest_weights
from dist_train.weights.write import Blocks, check_output, fill_weights, write_safetensors

OURS = "headcount"
_MEAN = ".running_mean"


def export_checkpoint(
    checkpoint: Path, output: Path, names: str, centers: bool, calibration: Path | None = None
) -> Card:
    """Write the weights of a checkpoint; what cannot work is found before anything is written.

    Args:
        checkpoint: its directory.
        output: file to write; card, centers and names are named after it.
        names: whose names the tensors get.
        centers: whether the class centers are written too.
        calibration: figures by `headcount eval --json`, whose thresholds the file and its card state.

    Raises:
        UserError: a place, names, centers or thresholds that cannot be had.
        WorkError: a damaged checkpoint, or a disk that refuses.
    """
    check_output(output)
    card_path(output)
    checkpoint = checkpoint.absolute()  # whose run is found two folders up, also where it is given as "."
    backbone, config, progress = load_backbone(checkpoint)
    parent = Parent.of(checkpoint, config, progress)
    thresholds = None
    if calibration is not None:
        thresholds = read_calibration(calibration, Owner(str(parent), digest_weights(backbone)))
    card = Card(output.name, names, count_parameters(backbone), (parent,), thresholds=thresholds)
    state = renamed(backbone.state_dict(), config.backbone, names)
    table = (plain_centers(checkpoint, config), identity_names(checkpoint, config, progress)) if centers else None
    return write_all(output, state, card, table)


def export_average(checkpoints: Sequence[Path], output: Path, names: str, data: str | None, batches: int) -> Card:
    """Write the mean of several checkpoints' weights, as `export_checkpoint` writes those of one.

    Args:
        checkpoints: their directories.
        output: file to write.
        names: whose names the tensors get.
        data: directory or address of the set that BatchNorm statistics are made anew on; None for networks without.
        batches: how many batches of its pictures are used at most.

    Raises:
        UserError: checkpoints of different networks, no set, or a place or names that cannot be had.
        WorkError: a damaged checkpoint or set, or a disk that refuses.
    """
    check_output(output)
    card_path(output)
    mean = average_backbones(checkpoints)
    backbone, section = mean.backbone, mean.parents[0].config.backbone
    renamed(backbone.state_dict(), section, names)  # what has no names there is known before the pictures are read
    notes = {}
    if not mean.has_statistics and data is not None:
        raise UserError(f"--set {data}: {section.name} has no BatchNorm statistics to make anew; leave it out")
    if mean.has_statistics:
        if data is None:
            raise UserError(
                f"--set is missing: {section.name} has BatchNorm, whose statistics are made anew on pictures; name a "
                "set of shards, e.g. the one that the runs were trained on"
            )
        pictures = choose_pictures(data, batches, mean.parents[0])
        renew_statistics(backbone, pictures)
        count = pictures.batches * pictures.batch_size
        notes["BatchNorm statistics"] = f"of {count:,} pictures of {data}, set {pictures.manifest.digest}"
    card = Card(output.name, names, count_parameters(backbone), mean.parents, notes)
    return write_all(output, renamed(backbone.state_dict(), section, names), card)


def write_all(
    output: Path, state: Mapping[str, Tensor], card: Card, centers: tuple[Blocks, pa.Table] | None = None
) -> Card:
    """Write weights, card, and centers with their names; all of them, or none.

    Returns:
        The card as it was written.

    Raises:
        UserError: a place that cannot be written to.
        WorkError: the disk refuses.
    """
    beside = (output.with_suffix(".centers.safetensors"), output.with_suffix(f".{IDENTITIES_NAME}"))
    if centers is not None:
        card = replace(card, centers=tuple(path.name for path in beside))
    about = card.header()
    card_file = card_path(output)
    with write_failures(str(output), MAKE_ROOM), ExitStack() as opened:
        # The weights are opened first, so they get their name last.
        files = [opened.enter_context(written(path)) for path in (output, card_file)]
        fill_weights(files[0], output.suffix, state, about)
        files[1].write(card.text().encode())
        if centers is not None:
            files += [opened.enter_context(written(path)) for path in beside]
            write_safetensors(files[2], {"centers": centers[0]}, about)
            pq.write_table(centers[1], files[3])
        for file in files:  # what the disk refuses shows before the first of them has its name
            file.flush()
    return card


def renamed(state: Mapping[str, Tensor], backbone: BackboneConfig, names: str) -> dict[str, Tensor]:
    """A backbone's state dict under the names of another project.

    Raises:
        UserError: that project has no such network.
    """
    if names == OURS:
        return dict(state)
    from dist_train.weights.names import TABLES

    own = TABLES[names].own_names(backbone)
    if left := sorted(set(state) - set(own.values())):
        raise UserError(f"--names {names}: {len(left)} tensors have no name there, the first: {left[0]}")
    tensors = {theirs: state[ours] for theirs, ours in own.items()}
    # A BatchNorm without parameters has a scale of 1 and a bias of 0, which other projects' networks ask for.
    for name in [each for each in tensors if each.endswith(_MEAN)]:
        norm = name.removesuffix(_MEAN)
        tensors.setdefault(f"{norm}.weight", torch.ones_like(tensors[name]))
        tensors.setdefault(f"{norm}.bias", torch.zeros_like(tensors[name]))
    return tensors


def count_parameters(backbone: nn.Module) -> int:
    """Numbers that training moves."""
    return sum(parameter.numel() for parameter in backbone.parameters())
