"""Where figures go: metrics.jsonl always, Weights & Biases besides, under the same names."""

import json
import logging
import secrets
from pathlib import Path
from typing import Any, Protocol

from dist_train.config import RunConfig

logger = logging.getLogger(__name__)

METRICS_NAME = "metrics.jsonl"


class Tracker(Protocol):
    """A sink of figures."""

    def log(self, step: int, figures: dict[str, float]) -> None:
        """Record `figures` at `step`."""

    def close(self) -> None:
        """Flush and end."""


class JsonlTracker:
    """One JSON object a line in `metrics.jsonl`.

    On resume the lines after the checkpoint's step are taken back, since those steps are made again.
    """

    def __init__(self, run_dir: Path, resume_step: int) -> None:
        path = run_dir / METRICS_NAME
        kept = [line for line in read_metrics(run_dir) if line["step"] <= resume_step] if resume_step else []
        path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def log(self, step: int, figures: dict[str, float]) -> None:
        """Append one line."""
        self._file.write(json.dumps({"step": step, **figures}) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class WandbTracker:
    """A Weights & Biases run; whatever goes wrong with it is said once and training goes on without."""

    def __init__(self, config: RunConfig, resumed: bool) -> None:
        import wandb

        id_file = config.run_dir / "wandb_id"
        run_id = id_file.read_text(encoding="utf-8") if resumed and id_file.exists() else secrets.token_hex(4)
        id_file.write_text(run_id, encoding="utf-8")
        self._run: Any = wandb.init(
            project=config.track.project,
            name=config.track.name or config.run_dir.name,
            id=run_id,
            resume="allow" if config.track.wandb == "online" else None,
            mode=config.track.wandb,
            dir=config.run_dir,
            config=config.model_dump(mode="json"),
            settings=wandb.Settings(console="off", silent=True),
        )

    def log(self, step: int, figures: dict[str, float]) -> None:
        """Hand the figures over to wandb's own process."""
        if self._run is None:
            return
        try:
            self._run.log(figures, step=step)
        except Exception as error:  # wandb's failures are of many kinds, none worth a training run
            logger.warning("W&B stopped working at step %d (%s); training goes on without it", step, error)
            self._run = None

    def close(self) -> None:
        """End the run."""
        if self._run is not None:
            self._run.finish()


class Trackers:
    """All sinks of a run; on ranks other than 0 there are none."""

    def __init__(self, config: RunConfig, rank: int, resume_step: int) -> None:
        self._sinks: list[Tracker] = []
        if rank != 0:
            return
        self._sinks.append(JsonlTracker(config.run_dir, resume_step))
        if config.track.wandb != "disabled":
            try:
                self._sinks.append(WandbTracker(config, resumed=resume_step > 0))
            except Exception as error:  # as above
                logger.warning("W&B could not start (%s); figures go to %s only", error, METRICS_NAME)

    def log(self, step: int, figures: dict[str, float]) -> None:
        """Record `figures` at `step` everywhere."""
        for sink in self._sinks:
            sink.log(step, figures)

    def close(self) -> None:
        """End all sinks; safe to repeat."""
        for sink in self._sinks:
            sink.close()
        self._sinks.clear()


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    """Lines of a run's `metrics.jsonl`; a last line cut off by a kill is left out."""
    path = run_dir / METRICS_NAME
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
