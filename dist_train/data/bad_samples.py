"""Keeps account of bad samples: each is written down once, and too many of them end the run."""

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from dist_train.errors import WorkError

log = logging.getLogger(__name__)

_LISTED = 20  # bad samples in the message that ends a run
_LEAST_POSITIONS = 1000  # before so many samples, one bad one says little about the share of bad ones


class BadSample(NamedTuple):
    """A sample that was replaced by the next one.

    Attributes:
        position: its place in the sample order.
        shard: path of its shard.
        key: its name.
        reason: what is wrong with it.
    """

    position: int
    shard: str
    key: str
    reason: str


class BadSampleLog:
    """Counts the bad samples of a rank and stops above a share of them.

    The share is taken over the samples that this rank has seen, but over no fewer than 1,000, or what an epoch gives
    it where that is less. Lines that a full disk refuses are lost, with one warning; counting goes on.
    """

    def __init__(self, path: Path | None, max_fraction: float, per_epoch: int) -> None:
        self._path = path
        self._max_fraction = max_fraction
        self._least = min(per_epoch, _LEAST_POSITIONS)
        self._seen: set[tuple[str, str]] = set()
        self._first: list[BadSample] = []
        self._refused = 0
        self.positions = 0
        self.count = 0

    def add(self, positions: int, bad: Iterable[BadSample]) -> None:
        """Take account of `positions` more samples, of which `bad` were bad.

        Raises:
            WorkError: there are more than the configuration allows.
        """
        self.positions += positions
        found = list(bad)
        self.count += len(found)
        for each in found:
            if (each.shard, each.key) not in self._seen:
                self._seen.add((each.shard, each.key))
                self._write(each)
        if found and self.count > self._max_fraction * max(self.positions, self._least):
            raise WorkError(
                f"{self.count} bad samples among the first {self.positions}, more than data.max_bad_fraction="
                f"{self._max_fraction:g}"
                + (f"; all are in {self._path}" if self._path else "")
                + "; run `headcount data verify`. The first:\n"
                + "\n".join(f"  {each.shard}, sample {each.key}: {each.reason}" for each in self._first)
            )

    def _write(self, bad: BadSample) -> None:
        log.warning("bad sample %s in %s, replaced by the next: %s", bad.key, bad.shard, bad.reason)
        if len(self._first) < _LISTED:
            self._first.append(bad)
        if self._path is not None:
            line = {"shard": bad.shard, "key": bad.key, "reason": bad.reason, "position": bad.position}
            # After a refused line its beginning may stand there: the next one begins anew.
            text = ("\n" if self._refused else "") + json.dumps(line) + "\n"
            try:
                # One short write in append mode: lines of several ranks do not mix.
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(text)
            except OSError as error:
                self._refused += 1
                if self._refused == 1:
                    log.error("BAD SAMPLES ARE NOT WRITTEN DOWN: %s: %s. Training goes on", self._path, error.strerror)
            else:
                self._refused = 0
