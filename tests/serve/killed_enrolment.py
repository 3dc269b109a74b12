"""Enrolments in a process that is killed at a random moment, and what must be there afterwards.

    python -m tests.serve.killed_enrolment --kills 1000

Prints a JSON line. What the process was told is done it writes down before it does anything else.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np

from dist_train.embed.enrolled import Enrolled
from tests.ranks import forked

DIM = 32
MADE_BY = {"model": {"name": "faces", "sha256": "a" * 64}, "embedding_dim": DIM, "flip": True}


def enrol_without_end(gallery: str, told: int) -> None:
    """Enrol and forget; each acknowledged change goes to the file descriptor `told`, as a line."""
    log = Enrolled(Path(gallery), MADE_BY)
    draws = np.random.default_rng()
    while True:
        entry = log.add(f"person {draws.integers(50)}", draws.normal(size=DIM).astype(np.float32), bytes(2000))
        os.write(told, b"+%d\n" % entry.number)
        if len(log) > 100 or draws.random() < 0.4:  # often enough that the log is rewritten meanwhile
            number = int(draws.choice([each.number for each in log.snapshot()[1]]))
            os.write(told, b"?%d\n" % number)  # may be gone from now on
            log.forget(number=number)
            os.write(told, b"-%d\n" % number)


def kill_loop(gallery: Path, kills: int, longest_s: float = 0.05) -> tuple[int, int]:
    """Kill such a process `kills` times, and look after each; numbers of acknowledged enrolments, and of lost ones."""
    acknowledged, lost, told, gone = 0, 0, gallery.with_suffix(".told"), set[int]()
    alive: set[int] = set()
    for _ in range(kills):
        with told.open("w+b") as file:
            process: BaseProcess = forked(_begin, str(gallery), variables={}, outputs=(file.fileno(), 2))
            while process.is_alive() and not os.fstat(file.fileno()).st_size:
                time.sleep(0.001)
            time.sleep(random.uniform(0, longest_s))
            process.kill()
            process.join()
            file.seek(0)
            lines = [line for line in file.read().splitlines(keepends=True) if line.endswith(b"\n")]
        added = {int(line[1:]) for line in lines if line[:1] == b"+"}
        gone |= {int(line[1:]) for line in lines if line[:1] in b"-?"}
        back = {int(line[1:]) for line in lines if line[:1] == b"-"}
        acknowledged += len(added)
        log = Enrolled(gallery, MADE_BY)
        found = {entry.number for entry in log.snapshot()[1]}
        log.close()
        lost += len((alive | added) - gone - found) + len(back & found)
        alive = found
    return acknowledged, lost


def _begin(gallery: str) -> None:
    enrol_without_end(gallery, 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    count = parser.parse_args().kills
    with tempfile.TemporaryDirectory() as name:
        acknowledged, lost = kill_loop(Path(name) / "gallery", count)
    sys.stdout.write(json.dumps({"kills": count, "acknowledged": acknowledged, "lost": lost}) + "\n")
    sys.exit(lost > 0)
