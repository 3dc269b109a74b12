"""The tracker for Weights & Biases, in a thread of its own, so that it can neither stop nor slow training."""

import logging
import queue
import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dist_train.config import TrackConfig
from dist_train.run_files import METRICS_NAME, WANDB_DIR_NAME, WANDB_ID_NAME
from dist_train.runtime.text import first_line
from dist_train.runtime.written import write_text

logger = logging.getLogger(__name__)

MOST_WAITING = 10_000
"""Records that wait for a network that is slow; further ones are dropped, while metrics.jsonl has them all."""
CLOSE_S = 60.0
"""Longest wait for what has not been sent at the end."""

Work = Callable[[Any], None]


class WandbTracker:
    """A Weights & Biases run. Its first failure is logged once, and training continues without it.

    Figures bear their own `step`, so that a resumed run may write steps again that it had written before it stopped.

    Args:
        run_dir: where the id and what cannot be sent are kept.
        config: the `track` section.
        recipe: the whole recipe as JSON values, shown beside the figures.
        resumed: go on with the run whose id the run directory holds.
    """

    def __init__(self, run_dir: Path, config: TrackConfig, recipe: dict[str, Any], resumed: bool) -> None:
        self._run_dir, self._config, self._recipe, self._resumed = run_dir, config, recipe, resumed
        self._waiting: queue.Queue[Work | None] = queue.Queue(MOST_WAITING)
        self._broken = threading.Event()
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def log(self, step: int, figures: dict[str, float]) -> None:
        """Hand figures over."""
        self._hand_over(lambda run: run.log({"step": step, **figures}))

    def pictures(self, name: str, sheet: NDArray[np.uint8]) -> None:
        """Hand a picture [H, W, 3] over."""

        def send(run: Any) -> None:  # noqa: ANN401  # wandb has no stable type for a run
            import wandb

            run.log({name: wandb.Image(sheet)})

        self._hand_over(send)

    def checkpoint(self, path: Path) -> None:
        """Hand a checkpoint's files over if `track.artifacts` is set."""
        if not self._config.artifacts:
            return

        def send(run: Any) -> None:  # noqa: ANN401
            import wandb

            artifact = wandb.Artifact(f"{run.id}-checkpoint", type="checkpoint", metadata={"checkpoint": path.name})
            artifact.add_dir(str(path))
            run.log_artifact(artifact, aliases=["latest", path.name])

        self._hand_over(send)

    def close(self) -> None:
        """Send the waiting figures, for a limited time, and end the thread."""
        if self._broken.is_set():
            return
        self._hand_over(None)
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            logger.warning("W&B did not take the last figures within %g s; %s has all of them", CLOSE_S, METRICS_NAME)

    def _hand_over(self, work: Work | None) -> None:
        if self._broken.is_set():
            return
        try:
            self._waiting.put_nowait(work)
        except queue.Full:
            self._broken.set()
            logger.warning("W&B is %d records behind; training goes on without it", MOST_WAITING)

    def _work(self) -> None:
        """In the thread: start the run, then do what is handed over."""
        try:
            run = self._start()
            while (work := self._waiting.get()) is not None and not self._broken.is_set():
                work(run)
            run.finish()
        except BaseException as error:  # wandb's failures are of many kinds, none worth a training run
            self._broken.set()
            logger.warning("W&B stopped working (%s); training goes on without it", str(error) or type(error).__name__)

    def _start(self) -> Any:  # noqa: ANN401
        import wandb

        config, run_dir = self._config, self._run_dir
        id_file = run_dir / WANDB_ID_NAME
        run_id = id_file.read_text(encoding="utf-8") if self._resumed and id_file.exists() else secrets.token_hex(4)
        write_text(id_file, run_id)

        def start(mode: Literal["online", "offline"]) -> Any:  # noqa: ANN401
            return wandb.init(
                project=config.project,
                name=config.name or run_dir.name,
                id=run_id,
                resume="allow" if mode == "online" else None,
                mode=mode,
                dir=run_dir,
                config=self._recipe,
                settings=wandb.Settings(console="off", silent=True),
            )

        if config.wandb == "online":
            try:
                # Never a question at the terminal, which nobody would answer.
                if not wandb.login(prompt=False):
                    raise RuntimeError("no API key on this machine")
                run = start("online")
            except Exception as error:
                logger.warning(
                    "W&B cannot be reached (%s); figures are kept in %s: `wandb sync` sends them later",
                    first_line(error),
                    run_dir / WANDB_DIR_NAME,
                )
                run = start("offline")
        else:
            run = start("offline")
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        return run
