"""Rows of a new head from an old one, identity by identity."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from dist_train.checkpoint.errors import DCP_ERRORS, last_line
from dist_train.checkpoint.metadata import read_tensors
from dist_train.checkpoint.reader import load_tensors
from dist_train.config import RunConfig
from dist_train.data.manifest import IDENTITIES_NAME
from dist_train.data.names import class_names
from dist_train.errors import UserError, WorkError
from dist_train.head import Head
from dist_train.head.config import HeadConfig
from dist_train.head.sizes import class_range
from dist_train.runtime.ranks import Ranks
from dist_train.runtime.text import shown
from dist_train.start.class_pictures import ClassPictures
from dist_train.start.head_source import HeadSource, check_same_rows, open_head_source, row_shape
from dist_train.start.join import Join, Names, join_by_name
from dist_train.start.new_rows import Model, NewRows
from dist_train.start.turns import work_off

logger = logging.getLogger(__name__)

START_FIGURES = "start/"
"""What the names of figures of a start begin with."""
_BLOCK_BYTES = 16 << 20  # of rows that are carried at a time


def start_head(
    config: RunConfig,
    head: Head,
    backbone: nn.Module,
    image_size: int,
    ranks: Ranks,
    checked: Path | None = None,
    key: str = "start.head",
) -> dict[str, float]:
    """Give a head that was just built the rows of `start.head`, and new identities rows of their own. A collective.

    Args:
        config: the recipe.
        head: whose rows are random.
        backbone: the plain network with the weights that training starts from; embeds the new identities' pictures.
        image_size: side of its pictures in pixels.
        ranks: this process among the job's.
        checked: what `start_backbone` has read; of the same run it is not read through a second time.
        key: for messages, where another key of the recipe stands for `start.head`.

    Returns:
        For the trackers, how many identities were carried, are new and are gone, and what became of the new ones'
        pictures.

    Raises:
        UserError: a head to start from that does not fit, or without names.
        WorkError: damaged files.
    """
    if config.start.head is None:
        return {}
    known = checked if config.start.head == config.start.backbone else None
    source = open_head_source(config.start.head, config.run_dir, ranks, known, key)
    ranks.agree(lambda: check_same_rows(source, head.config, head.embedding_dim))
    # Names are many: one rank joins them, and each gets what it needs to know of its own classes.
    join = ranks.agree(lambda: _join(config, source, head.num_classes) if ranks.rank == 0 else None)
    carried, new, gone = ranks.gather(None if join is None else (join.carried, join.new, join.gone))[0] or (0, 0, 0)
    old = _own_share(None if join is None else join.old, head, ranks)
    state = _common_state(source, head, ranks)
    embeds = bool(new) and config.start.new_rows == "embed"
    seen = _Seen(row_shape(head.config, head.embedding_dim)) if embeds else None
    mine = int(np.count_nonzero(old >= 0)) * (1 + len(state))
    work_off(ranks, [_carry(source, head, old, state, seen)], mine, key, "row")
    ranks.agree(lambda: _carry_margin(source, head))
    figures = {"carried": carried, "new": new, "gone": gone}
    if seen is not None:
        like = _mean_of(seen, ranks)
        pictures = ranks.agree(lambda: ClassPictures(config.data))
        with closing(pictures):
            model = Model(backbone, image_size, _batch_size(config, ranks))
            rows = NewRows(head, model, pictures, like, ranks)
            classes = _new_classes(old, head.num_classes, ranks)
            total = pictures.count(classes) if ranks.rank == 0 else 0
            work_off(ranks, rows.embed(classes), total, "new identities", "img")
        totals = np.sum(ranks.gather((rows.bad_pictures, rows.left_random)), axis=0)
        figures |= {"bad_pictures": int(totals[0]), "without_pictures": int(totals[1])}
    if ranks.rank == 0:
        what = "head" if key == "start.head" else f"{key}: a head that stands still"
        logger.info("%s started from %s: identities carried %d, new %d, gone %d", what, source.path, carried, new, gone)
        if figures.get("bad_pictures") or figures.get("without_pictures"):
            logger.warning(
                "of the new identities' pictures %d cannot be used; %d identities have none and start at random",
                figures["bad_pictures"],
                figures["without_pictures"],
            )
    return {START_FIGURES + name: value for name, value in figures.items()}


def check_head(config: RunConfig, head: HeadConfig, num_classes: int, ranks: Ranks, key: str = "start.head") -> Join:
    """What becomes of the identities when a run of `num_classes` starts from `start.head`; changes nothing.

    Args:
        config: the recipe.
        head: its section `head`.
        num_classes: identities of the run's set.
        ranks: this process among the job's.
        key: for messages, where another key of the recipe stands for `start.head`.

    Raises:
        UserError, WorkError: as `start_head`, where the start itself is at fault.
    """
    source = open_head_source(Path(str(config.start.head)), config.run_dir, ranks, key=key)
    check_same_rows(source, head, config.backbone.embedding_dim)
    return _join(config, source, num_classes)


def _batch_size(config: RunConfig, ranks: Ranks) -> int:
    """As many pictures as a forward pass of training has, which takes more memory."""
    return config.train.micro_batch_size or max(1, config.train.global_batch_size // ranks.world_size)


def _join(config: RunConfig, source: HeadSource, classes: int) -> Join:
    old, new = source.names(), class_names(config.data)
    where = " or ".join(str(each) for each in (config.data.path, *(other.path for other in config.data.mix)))
    if new is None:
        raise UserError(
            f"{source.key} carries rows by name, and there is no {IDENTITIES_NAME} in {where}; write the set with "
            f"`headcount prep`, or start without {source.key}"
        )
    mixed = "merge the sets of data.mix with `headcount prep merge`, or " if config.data.mix else ""
    join = join_by_name(
        Names(old, source.classes, str(source.names_at), "give one of them another name there"),
        Names(new, classes, f"{IDENTITIES_NAME} of {where}", f"{mixed}give one of them another name"),
    )
    if not join.carried:
        raise UserError(
            f"{source.key}: {source.path} and {where} have no identity in common: names there are like "
            f"{_example(old)}, here like {_example(new)}; correct one of the two, or start without {source.key}"
        )
    if join.new and config.start.new_rows == "embed" and config.start.backbone is None:
        raise UserError(
            f"start.new_rows=embed: {join.new:,} identities of {where} are new, and a network that has learned nothing "
            "cannot embed their pictures; give start.backbone, too (start.from gives both), or start.new_rows=random"
        )
    return join


def _example(table: pa.Table) -> str:
    return shown(table["name"][0].as_py()) if len(table) else "none at all"


def _own_share(every: NDArray[np.int64] | None, head: Head, ranks: Ranks) -> NDArray[np.int64]:
    """Of what rank 0 has for all classes [C], this rank's part [stop - start]; one collective."""
    if ranks.control_group is None:
        return np.zeros(0, np.int64) if every is None else every
    share = -(-head.num_classes // ranks.world_size)
    mine = torch.empty(share, dtype=torch.int64)
    parts: list[Tensor] | None = None
    if every is not None:
        padded = np.full(share * ranks.world_size, -1, dtype=np.int64)
        padded[: len(every)] = every
        parts = list(torch.from_numpy(padded).split(share))
    dist.scatter(mine, parts, src=0, group=ranks.control_group)
    return mine.numpy()[: head.stop - head.start]


def _new_classes(old: NDArray[np.int64], num_classes: int, ranks: Ranks) -> NDArray[np.int64]:
    """The classes without an old one, of all ranks, from this rank's share `old` [stop - start]; one collective."""
    masks = ranks.gather(np.packbits(old < 0))
    ranges = (class_range(num_classes, rank, ranks.world_size) for rank in range(ranks.world_size))
    every = [np.unpackbits(mask, count=stop - start) for mask, (start, stop) in zip(masks, ranges, strict=True)]
    return np.flatnonzero(np.concatenate(every))


def _common_state(source: HeadSource, head: Head, ranks: Ranks) -> list[str]:
    """The tables of optimizer state that both heads have; all of them or none."""
    own = {name: table.shape[1] for name, table in head.tables().items() if name != "centers"}
    there = {name: table.shape[1] for name, table in source.tables.items() if name != "centers"}
    if own == there:
        return list(own)
    if own and ranks.rank == 0:
        logger.info(
            "the head's optimizer state (%s) starts from zero: %s has %s",
            ", ".join(own),
            source.path,
            ", ".join(there) or "none",
        )
    return []


@dataclass(slots=True)
class _Seen:
    """Sums over the centers that were carried, for new ones to be like them."""

    shape: tuple[int, int, bool]
    centers: int = 0
    lengths: float = 0.0
    biases: float = 0.0

    def add(self, rows: Tensor) -> None:
        """Take account of rows [n, width]."""
        dim, k, biased = self.shape
        centers = rows.float().view(len(rows) * k, -1)
        self.centers += len(centers)
        self.lengths += float(centers[:, :dim].norm(dim=1).double().sum())
        if biased:
            self.biases += float(centers[:, dim].double().sum())


def _mean_of(seen: _Seen, ranks: Ranks) -> tuple[float, float]:
    """Mean length and bias of the carried centers of all ranks."""
    centers, lengths, biases = np.sum(ranks.gather((seen.centers, seen.lengths, seen.biases)), axis=0).tolist()
    return lengths / centers, biases / centers


def _carry(
    source: HeadSource, head: Head, old: NDArray[np.int64], state: list[str], seen: _Seen | None
) -> Iterator[int]:
    """Put the rows `old` [n] of the source, -1 for none, into this rank's tables; yields how many, block by block."""
    mine = np.flatnonzero(old >= 0)
    mine = mine[np.argsort(old[mine])]  # in the order in which they lie in the files
    for name in ("centers", *state):
        table = source.tables[name]
        block = max(1, _BLOCK_BYTES // (4 * table.shape[1]))
        for start in range(0, len(mine), block):
            classes = mine[start : start + block]
            rows = table.take(old[classes])
            if seen is not None and name == "centers":
                seen.add(rows)
            head.write_rows(name, torch.from_numpy(classes), rows)
            yield len(classes)


def _carry_margin(source: HeadSource, head: Head) -> None:
    """Take over the margin's moving averages, where the margin is the same."""
    own = head.margin.state()
    if source.margin != head.config.margin or not own:
        return
    found = {f"margin.{name}": torch.empty_like(value) for name, value in own.items()}
    try:
        stored = read_tensors(source.path)
        if any(f"head.{name}" not in stored for name in found):
            return
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")
            load_tensors({"head": found}, source.path, alone=True)
    except DCP_ERRORS as error:
        raise WorkError(f"checkpoint {source.path}: cannot be loaded: {last_line(error)}") from error
    for name, value in own.items():
        value.copy_(found[f"margin.{name}"])
