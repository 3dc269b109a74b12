"""What an objective is built in, without a recipe: seven classes, six numbers an embedding."""

from types import SimpleNamespace

import torch

from dist_train.data.batch import Batch
from dist_train.head import Head
from dist_train.head.config import HeadConfig
from dist_train.objectives.gathering import Gathering
from dist_train.objectives.setting import ObjectiveSetting
from tests.ranks import ranks_here

CLASSES, WIDTH = 7, 6


def setting(rank=0, world_size=1, head=None):
    """With a head of these keys; None for none."""
    ranks = ranks_here(rank, world_size)
    made = None
    if head is not None:
        where = {"group": ranks.group, "rank": rank, "world_size": world_size, "device": ranks.device}
        made = Head(HeadConfig(**head), CLASSES, WIDTH, seed=0, **where)
    config = SimpleNamespace(backbone=SimpleNamespace(embedding_dim=WIDTH))
    loader = SimpleNamespace(manifest=SimpleNamespace(num_classes=CLASSES))
    return ObjectiveSetting(config, ranks, loader, made, Gathering(ranks), False)


def batch_of(labels):
    """Of labels [B]; the pictures are not looked at."""
    labels = torch.as_tensor(labels)
    return Batch(torch.zeros(len(labels), 3, 1, 1), labels, labels, labels, torch.zeros_like(labels))
