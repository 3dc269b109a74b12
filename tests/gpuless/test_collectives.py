"""What 64 ranks exchange in a step: the same on all of them, and what the planner says."""

import os
from collections import Counter
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from torch import nn

from launch.check import plan_setup
from launch.plan_model import gpu_memory, network_bytes
from tests.gpuless.pretence import GPU, pretended_gpu
from tests.gpuless.program import batch, program, recipe, step
from tests.gpuless.ranks import rank_of

pytestmark = pytest.mark.job  # seconds each

RANKS, CPU = 64, torch.device("cpu")
IDENTITIES = 1000  # 16 on each of 62 ranks, 8 on the next one, none on the last
SOME = (0, 31, 62, 63)  # full ones, the one that is partly full, the empty one
PICTURES = 5  # of a pass: no tensor of the network has as many numbers as those that the head exchanges
HEAD = ("labels gathered", "embeddings gathered", "softmax statistics", "embeddings' gradient")


def exchanged(rank, config):
    """Collectives of a rank's third step; in the second, DistributedDataParallel orders its buckets anew."""
    with agreeing(config.train.strategy), rank_of(rank, RANKS, CPU) as (ranks, record):
        torch.manual_seed(rank)
        trained, accumulation = program(config, ranks, IDENTITIES, 32)
        own = batch(config.train.global_batch_size // RANKS, 32, CPU)
        own = own._replace(images=torch.randn(own.images.shape)).chunk(accumulation)
        for number in range(3):
            record.seen.clear()
            step(trained, own, number)
        seen = list(record.seen)
        trained.close()
        trained.replica.close()
    return seen


@contextmanager
def agreeing(strategy):
    """DeepSpeed's stage 3 compares what other ranks do, of which the fake group knows nothing."""
    if strategy != "zero3":
        yield
        return
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from deepspeed.runtime.zero import partitioned_param_coordinator

    with mock.patch.object(partitioned_param_coordinator, "assert_ints_same_as_other_ranks"):
        yield


@pytest.mark.parametrize(
    ("strategy", "head", "passes"),
    [
        ("ddp", {}, 1),
        ("ddp", {"sample_rate": 0.5, "centers_per_class": 2}, 2),
        ("zero1", {"sample_rate": 0.5}, 1),
        ("zero2", {"sample_rate": 0.5}, 1),
        ("zero3", {"sample_rate": 0.5}, 1),
    ],
)
def test_all_ranks_exchange_the_same_in_the_same_order_and_as_much_as_is_planned(strategy, head, passes):
    config = recipe(
        backbone={"name": "nano", "embedding_dim": 16},
        head=head,
        train={
            "global_batch_size": PICTURES * RANKS * passes,
            "micro_batch_size": PICTURES,
            "precision": "float32",
            "strategy": strategy,
        },
    )
    first, *others = [exchanged(rank, config) for rank in SOME]
    for other in others:
        assert other == first
    received = Counter()
    samples = PICTURES * RANKS
    of_head = {samples, samples * (16 + 1), 3 * samples}
    for each in first:
        received["head" if each.numbers in of_head else "backbone"] += each.received
    planned = network_bytes(plan_setup(config, config.head, IDENTITIES, 32, gpus=RANKS))
    assert received["head"] == sum(planned.pop(name) for name in HEAD)
    assert received["backbone"] == pytest.approx(sum(planned.values()), rel=0.01)


class Plain(nn.Module):
    """In place of `DistributedDataParallel`, whose C++ reads its weights."""

    def __init__(self, module, **options):
        super().__init__()
        self.module = module

    def forward(self, images):
        return self.module(images)


def test_the_head_of_100_million_identities_exchanges_and_takes_what_is_planned():
    classes = 100_000_001  # the last rank has 63 fewer than the others
    config = recipe(
        backbone={"name": "nano", "embedding_dim": 512},
        head={"sample_rate": 0.1, "logits_budget_mb": 8192},  # few blocks
        train={"global_batch_size": 128 * RANKS},
    )
    planned = plan_setup(config, config.head, classes, 32, gpus=RANKS)
    found = []
    for rank in (0, RANKS - 1):
        with (
            pretended_gpu(),
            mock.patch("dist_train.replica.ddp.DistributedDataParallel", Plain),
            rank_of(rank, RANKS, GPU) as (ranks, record),
        ):
            trained, _ = program(config, ranks, classes, 32)
            record.seen.clear()
            step(trained, [batch(128, 32, GPU)], 0)
            tables = sum(table.nbytes for table in trained.head._store.tables.values())
            found.append(list(record.seen))
            assert tables == (trained.head.stop - trained.head.start) * 512 * 4 * 2
    assert found[0] == found[1]
    assert sum(each.received for each in found[0]) == sum(network_bytes(planned)[name] for name in HEAD)
    memory = gpu_memory(planned)
    assert memory["class centers"] + memory["centers' optimizer state"] == 1_562_501 * 512 * 4 * 2
