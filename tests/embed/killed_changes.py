"""Appends to a gallery and removals from it in a process that is killed at a random moment, and what is there then.

    python -m tests.embed.killed_changes --kills 200

Prints a JSON line. Each change is one of a plan that is known in advance, so the gallery must be after some number of
them, and not fewer than the process said were done.
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from dist_train.embed.changes import append_rows, remove_rows
from dist_train.embed.compact import Rows
from dist_train.embed.gallery import Gallery, build_gallery
from tests.embed.standin import DIM, Numbers, embed
from tests.ranks import forked

CHANGES = 6
_QUERY = torch.ones(1, DIM)


def prepare(home: Path) -> None:
    """The files of embeddings: the first for the gallery, the others for its changes."""
    for number in range(CHANGES + 1):
        source = Numbers(first=20 * number, count=20 * number + (40 if number == 0 else 20), path=f"/set-{number}")
        embed(home / f"{number}.npy", source)


def change(gallery: Path, number: int) -> None:
    """The change `number`, 1 to `CHANGES`: odd ones append a file, even ones remove the person of that number."""
    if number % 2:
        append_rows(gallery, [gallery.parent / f"{number}.npy"])
    else:
        remove_rows(gallery, [f"person {number // 2}"])


def found(gallery: Path) -> list[tuple[str, str, float]]:
    """Everything a search gives."""
    opened = Gallery(gallery)
    (matches,) = opened.search(_QUERY, len(opened))
    keys = [(opened.sources[m.source]["path"], m.place.path, round(m.score, 5)) for m in matches]
    return sorted(keys)


def kill_loop(home: Path, kills: int, kind: Rows, longest_s: float = 0.3) -> dict[str, int]:
    """Kill such a process `kills` times; how often, how often the state was none of the plan's, and lost changes."""
    gallery, told, states = home / "gallery", home / "told", []
    prepare(home)
    for number in range(CHANGES + 1):
        change(gallery, number) if number else build_gallery([home / "0.npy"], gallery, quiet=True, rows=kind)
        states.append(found(gallery))
    counted = {"kills": 0, "odd": 0, "lost": 0, "changed": 0}
    done, wait_s = CHANGES, longest_s
    for _ in range(kills):
        if done == CHANGES:  # start again
            shutil.rmtree(gallery)
            build_gallery([home / "0.npy"], gallery, quiet=True, rows=kind)
            done = 0
        with told.open("w+b") as file:
            process: BaseProcess = forked(_changes, str(gallery), done, variables={}, outputs=(file.fileno(), 2))
            while process.is_alive() and not os.fstat(file.fileno()).st_size:
                time.sleep(0.001)
            time.sleep(random.uniform(0, wait_s))
            process.kill()
            process.join()
            file.seek(0)
            said = max(int(line) for line in file.read().splitlines(keepends=True) if line.endswith(b"\n"))
        now = found(gallery)
        counted["kills"] += 1
        if now not in states:
            counted["odd"] += 1
            done = CHANGES
            continue
        after = states.index(now)
        counted["lost"] += after < said
        counted["changed"] += after - done
        wait_s = longest_s if after > done else min(2 * wait_s, 10.0)  # a busy machine changes nothing so soon
        done = after
    return counted


def _changes(gallery: str, done: int) -> None:
    os.write(1, b"%d\n" % done)
    for number in range(done + 1, CHANGES + 1):
        change(Path(gallery), number)
        os.write(1, b"%d\n" % number)
    time.sleep(60)  # to be killed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--rows", type=Rows, default=Rows.int8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        counted = kill_loop(Path(name), options.kills, options.rows)
    sys.stdout.write(json.dumps(counted) + "\n")
    sys.exit(counted["odd"] + counted["lost"] > 0)
