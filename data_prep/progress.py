"""What a running job tells of itself: a bar on standard error with rate, time left, kept and rejected."""

from typing import Any

from tqdm import tqdm


class Progress:
    """A bar per stage. `quiet` shows none, for tests and for tasks whose output is a log."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bar: tqdm | None = None
        self._kept = self._rejected = 0

    def start(self, what: str, total: int) -> None:
        """Begin a stage of `total` `what`."""
        self._bar = tqdm(total=total, unit=f" {what}", disable=self._quiet, smoothing=0.05, mininterval=0.5)
        self._kept = self._rejected = 0

    def add(self, summary: dict[str, Any], before: bool = False) -> None:
        """Count a unit, by its summary; `before`: it was done by an earlier run and does not count for the rate."""
        bar = self._bar
        if bar is None or bar.disable:
            return
        if "kept" in summary:
            self._kept += summary["kept"]
            self._rejected += summary["given"] - summary["kept"]
            bar.set_postfix(kept=self._kept, rejected=self._rejected, refresh=False)
        if before:
            bar.initial += summary["given"]
            bar.n += summary["given"]
            bar.last_print_n = bar.n
        else:
            bar.update(summary["given"])

    def end(self) -> None:
        """End the stage."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
