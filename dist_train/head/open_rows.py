"""The opening of a rank's rows: on all ranks or on none."""

from contextlib import ExitStack

import torch

from dist_train.errors import UserError
from dist_train.head.config import HeadConfig
from dist_train.head.exchange import HeadGroup
from dist_train.head.optimizers import build_tables
from dist_train.head.rounding import StochasticRounder
from dist_train.head.storage import RowStore, fill_normal
from dist_train.runtime.ranks import Ranks


def open_rows(
    config: HeadConfig,
    width: int,
    classes: range,
    ranks: HeadGroup,
    device: torch.device,
    rounder: StochasticRounder,
    seed: int,
    draws: bool,
) -> RowStore:
    """The tables of a rank's classes. A collective.

    Args:
        config: the `head` section.
        width: numbers of a center.
        classes: this rank's.
        ranks: that share the classes.
        device: where the head computes.
        rounder: writes bfloat16 tables.
        seed: of the run.
        draws: whether centers are drawn anew; else they are zeros, until a checkpoint is loaded.

    Raises:
        UserError: a store without room on any rank; on all.
    """
    rank, world_size = ranks.rank, ranks.world_size
    specs = build_tables(config, width)

    def open_share() -> RowStore:
        owner = (rank, world_size)
        try:
            share = RowStore(specs, len(classes), device, config.storage, config.storage_dir, owner, rounder)
        except UserError as error:
            raise UserError(f"rank {rank}: {error}") from error
        opened.callback(share.close)  # where another rank has none
        return share

    # Every rank learns of a failure here, before training: no rank waits in a collective for a rank that gave up.
    everyone = Ranks(rank, rank, world_size, device, ranks.group, control_group=ranks.group)
    with ExitStack() as opened:
        store = everyone.agree(open_share, "all")
        if draws:
            fill_normal(store.tables["centers"], classes.start, seed, config.init_std)
        opened.pop_all()
    return store
