"""Progress of a running job: a bar on standard error with rate, time left, counts of kept and rejected inputs."""

import time
from typing import Any

from tqdm import tqdm

from data_prep.job.wandb_run import WandbRun
from dist_train.runtime.progress import progress_bar


class StageBars:
    """A bar per stage.

    Args:
        quiet: whether to show no bar, for tests and for tasks whose output is a log.
        run: the Weights & Biases run that takes the same figures after every unit.
    """

    def __init__(self, quiet: bool = False, run: WandbRun | None = None) -> None:
        self._quiet = quiet
        self._run = run
        self._bar: tqdm[Any] | None = None
        self._what = ""
        self._done = self._kept = self._rejected = 0  # inputs of this stage
        self._now = 0  # inputs since this start of the job
        self._began_s = 0.0

    def start(self, what: str, total: int) -> None:
        """Begin a stage of `total` `what`."""
        self._bar = progress_bar(total=total, unit=f" {what}", disable=self._quiet, smoothing=0.05, mininterval=0.5)
        self._what = what
        self._done = self._kept = self._rejected = self._now = 0
        self._began_s = time.perf_counter()

    def add(self, summary: dict[str, Any], before: bool = False) -> None:
        """Count a unit by its summary; with `before` an earlier start did it, and it does not count for the rate."""
        given = summary["given"]
        self._done += given
        if "kept" in summary:
            self._kept += summary["kept"]
            self._rejected += given - summary["kept"]
        if not before:
            self._now += given
            self._track()
        if self._bar is not None and not self._bar.disable:
            self._show(self._bar, given, before)

    def end(self) -> None:
        """End the stage."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _show(self, bar: "tqdm[Any]", given: int, before: bool) -> None:
        if self._kept or self._rejected:
            bar.set_postfix(kept=self._kept, rejected=self._rejected, refresh=False)
        if before:
            bar.initial += given
            bar.n += given
            bar.last_print_n = bar.n
        else:
            bar.update(given)

    def _track(self) -> None:
        if self._run is None:
            return
        rate = self._now / max(1e-9, time.perf_counter() - self._began_s)
        figures = {self._what: self._done, f"{self._what}_per_s": rate}
        if self._kept or self._rejected:
            figures |= {"kept": self._kept, "rejected": self._rejected}
        self._run.log(figures)
