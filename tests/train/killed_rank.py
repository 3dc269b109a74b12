"""`python -m tests.train.killed_rank RUN_DIR train CONFIG`: a rank of `launch.rank` that dies where a plan says.

The plan is a directory of files, each a `Kill`, named by the environment variable KILL_PLAN. The first one left is
due; it is renamed before it strikes, so that it strikes once.
"""

import json
import os
import signal
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

PLAN = "KILL_PLAN"
KINDS = ("rank", "launcher", "save", "checksums", "before_rename", "after_rename", "prune")


@dataclass(frozen=True)
class Kill:
    """A `kill -9`.

    Attributes:
        kind: `rank` and `launcher` some time after a step began, the others within a save.
        step: the first step at which it may strike.
        rank: who dies, or kills the launcher.
        delay_s: after the begin of the step, or of writing.
    """

    kind: str
    step: int
    rank: int
    delay_s: float


def write_plan(directory: Path, kills: list[Kill]) -> None:
    directory.mkdir(parents=True)
    for number, kill in enumerate(kills):
        (directory / f"{number:03d}.json").write_text(json.dumps(asdict(kill)))


def left(directory: Path) -> list[Path]:
    """Files of kills that have not struck."""
    return sorted(directory.glob("*.json"))


class Killer:
    """Strikes at the kill that is due, if it is this rank's."""

    def __init__(self, directory: Path, rank: int) -> None:
        self._file = next(iter(left(directory)), None)
        self._kill = Kill(**json.loads(self._file.read_text())) if self._file else None
        self._rank = rank
        self.step = 0

    def _due(self, kind: str) -> bool:
        kill = self._kill
        return kill is not None and (kill.kind, kill.rank) == (kind, self._rank) and self.step >= kill.step

    def at(self, kind: str) -> None:
        """Here is a place for a kill of `kind`: it comes now, or a little later while work goes on."""
        if not self._due(kind):
            return
        kill, file, self._kill = self._kill, self._file, None
        victim = os.getppid() if kind == "launcher" else os.getpid()

        def strike() -> None:
            file.replace(file.with_suffix(".struck"))
            os.kill(victim, signal.SIGKILL)

        if kill.delay_s:
            timer = threading.Timer(kill.delay_s, strike)
            timer.daemon = True
            timer.start()
        else:
            strike()


def install(killer: Killer) -> None:
    """Put the places for kills into the code of a run."""
    from torch.distributed.checkpoint import FileSystemWriter

    import dist_train.checkpoint.checkpointer as checkpointer
    from dist_train.train.loop import Loop

    step, write, sums, replace = (
        Loop.train_step,
        FileSystemWriter.write_data,
        checkpointer.write_checksums,
        Path.replace,
    )

    def train_step(self, batch):
        killer.step = self.step
        killer.at("rank")
        killer.at("launcher")
        return step(self, batch)

    def write_data(self, *arguments):
        killer.at("save")
        return write(self, *arguments)

    def write_checksums(*arguments):
        killer.at("checksums")
        return sums(*arguments)

    def replace_and_maybe_die(self, target):
        name = Path(target).name
        if name.startswith("step-"):
            killer.at("before_rename")
        result = replace(self, target)
        if name.startswith("step-"):
            killer.at("after_rename")
        if name.startswith(".removing-"):
            killer.at("prune")
        return result

    Loop.train_step, FileSystemWriter.write_data = train_step, write_data
    checkpointer.write_checksums, Path.replace = write_checksums, replace_and_maybe_die


if __name__ == "__main__":
    from launch.rank import main

    install(Killer(Path(os.environ[PLAN]), int(os.environ["RANK"])))
    main()
