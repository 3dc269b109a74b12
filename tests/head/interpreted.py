"""Heads whose kernels run in Triton's interpreter, for `test_kernels`: in processes with TRITON_INTERPRET=1.

The interpreter multiplies bfloat16 as if it were an integer, so operands and weights are float32 here; tiles are small,
so that small heads have several, and none is divided evenly.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from dist_train.head import Head, HeadConfig, fused_update, kernel_weights
from dist_train.head.fused_update import update_rows
from dist_train.head.kernels.tiles import Tiles
from tests.head import test_head_steps, test_several_labels, test_sharded_head

SMALL = Tiles(rows=16, samples=8, numbers=16, group=2, warps=1, stages=1)
CPU = torch.device("cpu")
CLASSES, WIDTH = 4, 512  # of roundings
OPTIMIZERS = [{"momentum": 0.0}, {}, {"optimizer": "rowwise_adagrad"}, {"optimizer": "adamw"}]


class _Counting:
    """A kernel that counts its launches."""

    def __init__(self, kernel: Any, name: str, launches: Counter[str]) -> None:
        self.kernel, self.name, self.launches = kernel, name, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        self.launches[self.name] += 1
        return self.kernel[grid]


@contextmanager
def by_kernels(tiles: Tiles | None) -> Iterator[Counter[str]]:
    """Heads compute by kernels, with `tiles` or those of the product; the kernels' launches, as they come."""
    launches: Counter[str] = Counter()
    with ExitStack() as stack:
        for name, value in {
            "softmax.kernel_dtype": lambda arithmetic, filtered, device: None if filtered else torch.float32,
            "update.updates_fused": lambda device: True,
            "kernel_weights.weights_kernel": _Counting(kernel_weights.weights_kernel, "weights", launches),
            "fused_update.update_kernel": _Counting(fused_update.update_kernel, "update", launches),
        }.items():
            stack.enter_context(patch(f"dist_train.head.{name}", value))
        if tiles is not None:
            stack.enter_context(patch("dist_train.head.kernel_weights.weights_tiles", lambda *_: tiles))
        yield launches


def one_step(rank: int, world_size: int, case: tuple, tiles: Tiles | None = SMALL) -> dict:
    with by_kernels(tiles) as launches:
        return test_sharded_head.one_step(rank, world_size, *case) | {"launches": dict(launches)}


def several_labels(settings: dict) -> dict:
    with by_kernels(SMALL) as launches:
        return test_several_labels.one_step(0, 1, settings) | {"launches": dict(launches)}


def steps(settings: dict, folder: str, budget: int) -> dict:
    with by_kernels(SMALL) as launches:
        return test_head_steps.train(0, 1, settings, folder, budget) | {"launches": dict(launches)}


def small_head(settings: dict, classes: int, width: int) -> Head:
    return Head(HeadConfig(**settings), classes, width, group=None, rank=0, world_size=1, device=CPU, seed=4)


def bits(head: Head) -> dict[str, np.ndarray]:
    return {name: table.clone().view(torch.uint8).numpy() for name, table in head.tables().items()}


def conditions(settings: dict) -> tuple[list[dict[str, np.ndarray]], list[float]]:
    """Tables before a step, and after one that is refused, one that proceeds and one that nobody asks about.

    And the norms of the gradient that these three say.
    """
    found, norms = [], []
    with by_kernels(SMALL):
        for proceed in (False, True, None):
            head = small_head({"sample_rate": 0.5} | settings, 9, 20)
            before = bits(head)
            embeddings = torch.randn(3, 20, generator=torch.Generator().manual_seed(1)).requires_grad_()
            head(embeddings, torch.tensor([0, 4, 8])).backward()
            head.step(0.1, measure=True, proceed=None if proceed is None else torch.tensor(proceed))
            found.append(bits(head))
            norms.append(head.statistics()["gradient_norm"])
            head.close()
    return [before, *found], norms


def roundings(value: float, gradient: float, momentum: float, keys: int) -> tuple[np.ndarray, ...]:
    """Centers [keys, classes, width] and their momentum, all of the same value before and of the same gradient.

    They are updated in two blocks.
    """
    head, found = small_head({"dtype": "bfloat16", "momentum": momentum, "weight_decay": 0.0}, CLASSES, WIDTH), []
    tables = head.tables()
    for key in range(keys):
        head._rounder.new_step(key)
        tables["centers"].fill_(value)
        tables["momentum"].zero_()
        for start in range(0, CLASSES, CLASSES // 2):
            slopes = torch.full((CLASSES // 2, WIDTH), gradient)
            update_rows(
                head._update.optimizer, head._store.lease(None), start, start + CLASSES // 2, slopes, 1.0, width=WIDTH,
                weight_decay=0.0, normalised=False, squares=None, proceed=None,
            )  # fmt: skip
        found.append([tables[name].float().numpy() for name in ("centers", "momentum")])
    head.close()
    centers, moments = zip(*found, strict=True)
    return np.stack(centers), np.stack(moments)


def work(rank: int, world_size: int, alone: dict[str, tuple], together: list[tuple]) -> dict[str, Any]:
    """This process's share of what needs one rank, by name, then its part in what needs all.

    Args:
        rank: of this process.
        world_size: processes.
        alone: name of a function of this module and its arguments, by the result's name.
        together: cases of `one_step`.
    """
    found: dict[str, Any] = {"kind": type(kernel_weights.weights_kernel).__name__}
    found["together"] = [one_step(rank, world_size, case) for case in together]  # first, while neither waits for long
    mine = list(alone.items())[rank::world_size]
    return found | {name: globals()[function](*args) for name, (function, *args) in mine}
