"""The process that reads changed inputs: `python -m tests.fuzz.worker MODULE CURRENT`, started by `campaign.py`.

Takes a JSON line {"reader", "seed", "start", "stop"} at a time, answers with a JSON line per input. Whoever started it
ends it when an answer takes too long; memory is limited here. The network is closed: no changed address is asked.
"""

import base64
import contextlib
import faulthandler
import importlib
import json
import logging
import os
import random
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import IO, Any

from dist_train.runtime.terminal import printable
from tests.fuzz.mutations import mutate
from tests.fuzz.reader import REFUSALS, Reader, Scene

MOST_BYTES = 2 << 30  # of memory beyond what the process had before, in use or asked for
MEMORY_SIGNS = ("insufficient memory", "bad_alloc", "failed to allocate", "unable to allocate", "out of memory")
ROOT = str(Path(__file__).parents[2])


def make_input(reader: Reader, seed: int, number: int) -> tuple[int, bytes, str]:
    """Input `number` of a reader: which scene, the changed target, and the mutations' names."""
    chance = random.Random(f"{reader.name}/{seed}/{number}")
    scenes = reader.scenes()
    place, other = chance.randrange(len(scenes)), chance.choice(scenes)
    scene = scenes[place]
    content, how = mutate(chance, scene.files[scene.target], other.files[other.target], reader.mutations)
    return place, content, how


def lay_out(scene: Scene, content: bytes, home: Path) -> None:
    """Write a scene; the changed target comes last."""
    for name, data in (*scene.files.items(), (scene.target, content)):
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def judge(reader: Reader, scene: Scene, content: bytes, home: Path) -> dict[str, Any]:
    """Have the product read one input: the verdict, and what it rests on."""
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    lay_out(scene, content, home)
    begin = time.perf_counter()
    verdict, detail, where = "accepted", "", ""
    try:
        reader.read(home)
    except REFUSALS as error:
        verdict, detail = "refused", str(error)
        try:
            printable(detail).encode()
        except UnicodeError:
            verdict, where = "TRACEBACK", "the message cannot be printed"
        if any(sign in detail.lower() for sign in MEMORY_SIGNS):
            verdict, where = "MEMORY", _place(error)
    except MemoryError as error:
        verdict, detail, where = "MEMORY", str(error), _place(error)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        verdict, detail, where = "TRACEBACK", f"{type(error).__name__}: {error}", _place(error)
        if any(sign in detail.lower() for sign in MEMORY_SIGNS):
            verdict = "MEMORY"
    return {"verdict": verdict, "detail": detail[:300], "where": where, "seconds": time.perf_counter() - begin}


def _place(error: BaseException) -> str:
    """The innermost line of the product that an error went through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if frame.filename.startswith(ROOT) and "/tests/" not in frame.filename] or frames
    return f"{os.path.relpath(ours[-1].filename, ROOT)}:{ours[-1].lineno}"


def serve(readers: dict[str, Reader], orders: IO[str], answers: IO[str], current: Path) -> None:
    """Answer orders until there are no more; `current` holds the input that is being read."""
    _close_network()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        home = Path(scratch) / "here"
        for order in map(json.loads, orders):
            reader = readers[order["reader"]]
            answers.write(json.dumps(_warm_up(reader, home)) + "\n")
            base = _memory("VmRSS")
            _limit(MOST_BYTES)
            for number in range(order["start"], order["stop"]):
                place, content, how = make_input(reader, order["seed"], number)
                current.write_bytes(content)
                Path("/proc/self/clear_refs").write_text("5")  # forgets the highest memory so far
                answer = judge(reader, reader.scenes()[place], content, home)
                grown = _memory("VmHWM") - base
                if grown > MOST_BYTES and answer["verdict"] != "TRACEBACK":
                    answer["verdict"] = "MEMORY"
                answer |= {"number": number, "scene": place, "how": how, "grown_mb": grown >> 20}
                if answer["verdict"] not in ("accepted", "refused"):
                    answer["content"] = base64.b64encode(content).decode()
                answers.write(json.dumps(answer) + "\n")
            _limit(None)


def _warm_up(reader: Reader, home: Path) -> dict[str, Any]:
    """A seed must be accepted, or its changes would all fail on the same first check."""
    bad = ""
    for place, scene in enumerate(reader.scenes()):
        answer = judge(reader, scene, scene.files[scene.target], home)
        if answer["verdict"] != "accepted":
            bad = f"its own seed {place} ({scene.target}) is not accepted: {answer}"
    return {"ready": reader.name, "problem": bad}


def _memory(key: str) -> int:
    """A line of /proc/self/status, in bytes."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(key))


def _limit(more: int | None) -> None:
    """Limit private memory to what there is and `more`."""
    soft = resource.RLIM_INFINITY if more is None else _memory("VmData") + more
    resource.setrlimit(resource.RLIMIT_DATA, (soft, resource.RLIM_INFINITY))


def _close_network() -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionRefusedError("no network while fuzzing")

    socket.socket.connect = socket.socket.connect_ex = refuse  # type: ignore[method-assign,assignment]
    socket.getaddrinfo = refuse  # type: ignore[assignment]


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)  # whatever a reader prints
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # asked before a process that hangs is ended
    logging.basicConfig(level=logging.CRITICAL)
    logging.disable(logging.WARNING)
    readers = importlib.import_module(sys.argv[1]).READERS
    with contextlib.suppress(BrokenPipeError):
        serve(readers, sys.stdin, answers, Path(sys.argv[2]))


if __name__ == "__main__":
    main()
