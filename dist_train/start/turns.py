"""Long work of which each rank has another share."""

import time
from collections.abc import Iterable, Iterator
from functools import partial

from dist_train.runtime.progress import progress_bar
from dist_train.runtime.ranks import Ranks

_MEET_EVERY_S = 5.0


def work_off(ranks: Ranks, stages: Iterable[Iterator[int]], total: int, name: str, unit: str) -> None:
    """Run this rank's share of each stage to its end, and wait for the others'. A collective.

    The ranks meet every few seconds: one that has little to do waits for no exchange longer than that, and a failure
    of one ends all.

    Args:
        ranks: this process among the job's.
        stages: as many on every rank. A stage yields after each piece how much was done, and must not itself wait for
            other ranks; what makes the next stage may, since all ranks have then ended the one before.
        total: what this rank's pieces add up to.
        name: of the work, for the bar on rank 0.
        unit: of `total`.

    Raises:
        UserError | WorkError: on rank 0, the failures of all ranks; the others leave silently.
    """
    with progress_bar(
        total=sum(ranks.gather(total)), desc=name, unit=unit, unit_scale=True, disable=ranks.rank != 0
    ) as bar:
        for work in stages:
            working = True
            while working:
                states = ranks.gather(ranks.agree(partial(_some_of, work)))
                bar.update(sum(done for done, _ in states))
                working = not all(finished for _, finished in states)


def _some_of(work: Iterator[int]) -> tuple[int, bool]:
    """A few seconds of the work: how much was done, and whether it is finished."""
    deadline, done = time.monotonic() + _MEET_EVERY_S, 0
    for count in work:
        done += count
        if time.monotonic() >= deadline:
            return done, False
    return done, True
