"""Timing in rounds: models take turns, so that all see the same load of the machine."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch

from dist_train.bench.contender import Contender, noise

LEAST_ROUNDS = 3
_SETTLE_S = 0.01  # threads of the model before go on spinning for some milliseconds
PERCENTILES = (50, 90, 99)

Clock = Callable[[], float]


@dataclass(frozen=True)
class Case:
    """What is varied.

    Attributes:
        threads: of the processor.
        batch: pictures in a call.
    """

    threads: int
    batch: int


@dataclass(frozen=True)
class Timing:
    """What one model did in one case.

    Attributes:
        model: its name.
        form: what computed it.
        case: threads and batch.
        seconds: of each call.
        size_bytes: of its file.
    """

    model: str
    form: str
    case: Case
    seconds: tuple[float, ...]
    size_bytes: int | None = None

    @property
    def images_per_s(self) -> float:
        """Pictures a second by the median call."""
        return self.case.batch / median(self.seconds)

    def latency_ms(self) -> dict[int, float]:
        """Percentiles of a call's milliseconds; the 99th only where there are 100 calls to have one."""
        known = [p for p in PERCENTILES if p < 99 or len(self.seconds) >= 100]
        return {p: float(np.percentile(self.seconds, p)) * 1e3 for p in known}

    def to_json(self) -> dict[str, Any]:
        """The figures for programs."""
        return {
            "model": self.model,
            "form": self.form,
            "threads": self.case.threads,
            "batch": self.case.batch,
            "calls": len(self.seconds),
            "latency_ms": {f"p{p}": round(value, 4) for p, value in self.latency_ms().items()},
            "images_per_s": round(self.images_per_s, 2),
            "size_bytes": self.size_bytes,
        }


def measure(
    contenders: Sequence[Contender],
    case: Case,
    rounds: int,
    calls: int,
    seconds: float,
    clock: Clock = time.perf_counter,
) -> list[Timing]:
    """Time each model in one case.

    A round is a turn of each model, each round in the opposite order of the one before. A turn begins with calls that
    are not timed, for some milliseconds at least, in which the threads of the model before come to rest.

    Args:
        contenders: the models.
        case: threads and batch.
        rounds: how many; fewer, but `LEAST_ROUNDS`, where the time is up.
        calls: timed ones in a turn; fewer, but one, where they take more than the turn's share of the time.
        seconds: for each model.
        clock: seconds of a clock that runs evenly.

    Raises:
        WorkError: a model failed.
    """
    before = torch.get_num_threads()
    taken: list[list[float]] = [[] for _ in contenders]
    try:
        torch.set_num_threads(case.threads)
        ready = [(each.open(case.threads), noise(case.batch, each.image_size)) for each in contenders]
        turns = list(zip(ready, taken, strict=True))
        begun = clock()
        with torch.inference_mode():
            for number in range(rounds):
                if number >= LEAST_ROUNDS and clock() - begun > seconds * len(contenders):
                    break
                for (embed, pictures), times in turns if number % 2 == 0 else reversed(turns):
                    start = clock()
                    while True:
                        embed(pictures).cpu()
                        if clock() - start >= _SETTLE_S:
                            break
                    start = clock()
                    for _ in range(calls):
                        begin = clock()
                        embed(pictures).cpu()
                        end = clock()
                        times.append(end - begin)
                        if end - start > seconds / rounds:
                            break
    finally:
        torch.set_num_threads(before)
    return [
        Timing(each.name, each.form, case, tuple(times), each.size_bytes)
        for each, times in zip(contenders, taken, strict=True)
    ]
