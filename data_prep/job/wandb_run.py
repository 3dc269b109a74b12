"""A job's figures in Weights & Biases; the first failure is logged once, and the job continues without them."""

import logging
from pathlib import Path
from typing import Any, Literal

logger = logging.getLogger(__name__)

PROJECT = "headcount-prep"


class WandbRun:
    """The Weights & Biases run of one start of a job.

    Args:
        out: directory of the set; the run's files go into `wandb` there.
        mode: `online` or `offline`, whose files can be sent later by `wandb sync`.
        options: of the job.
    """

    def __init__(self, out: Path, mode: Literal["online", "offline"], options: dict[str, Any]) -> None:
        self._run: Any = None
        try:
            import wandb

            out.mkdir(parents=True, exist_ok=True)
            settings = wandb.Settings(console="off", silent=True)
            name = out.absolute().name
            self._run = wandb.init(
                project=PROJECT, name=name, group=name, dir=out, mode=mode, config=options, settings=settings
            )
        except Exception as error:  # wandb's failures are of many kinds, none worth a job
            logger.warning("W&B could not start (%s); the job goes on without it", error)

    def log(self, figures: dict[str, float]) -> None:
        """Send figures."""
        if self._run is None:
            return
        try:
            self._run.log(figures)
        except Exception as error:  # as above
            logger.warning("W&B stopped working (%s); the job goes on without it", error)
            self._run = None

    def close(self, report: Path | None = None) -> None:
        """End the run, with the picture of the set where there is one."""
        if self._run is None:
            return
        try:
            if report is not None:
                import wandb

                self._run.log({"report": wandb.Image(str(report))})
            self._run.finish()
        except Exception as error:  # as above
            logger.warning("W&B did not end well (%s)", error)
        self._run = None
