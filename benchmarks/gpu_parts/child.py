"""The process that parts run in: what it finds goes as lines to the process that started it."""

import argparse
import importlib
import importlib.util
import json
import os
import signal
import sys
import threading
import traceback
from typing import Any

import torch

from benchmarks.gpu_parts.bench import Bench, BrokenDeviceError
from benchmarks.gpu_parts.parts import PARTS, share_s


def run_parts(options: argparse.Namespace) -> None:
    """Work off the parts; ends at one that breaks the device, which no further one can use then."""
    # Libraries write to standard output too, which is the lines' own.
    said = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(line: dict[str, Any]) -> None:
        said.write(json.dumps(line) + "\n")
        said.flush()

    threading.Thread(target=end_with_parent, daemon=True).start()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        for name in options.parts:
            found = f"torch {torch.__version__} finds no GPU"
            say({"benchmark": "gpu", "part": name, "case": "", "error": found})
            say({"end": name})
        return
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    left = list(options.parts)
    while left:
        part = PARTS[left[0]]
        seconds = share_s(left, options.until)
        say({"begin": left[0]})

        def emit(line: dict[str, Any], part: str = left[0]) -> None:
            say({"benchmark": "gpu", "part": part} | line | {"device": name, "torch": torch.__version__})

        missing = [needed for needed in part.needs if not is_there(needed)]
        if missing or (part.cuda and device.type != "cuda"):
            emit({"case": "", "skipped": f"not installed here: {', '.join(missing)}" if missing else "needs a GPU"})
        else:
            bench = Bench(device, options.small, options.out, seconds, emit, photos=options.photos)
            try:
                importlib.import_module(f"benchmarks.gpu_parts.{part.module}").run(bench)
            except BrokenDeviceError:
                os._exit(3)  # an orderly end would ask the device once more
            except Exception as error:
                traceback.print_exc()
                emit({"case": "", "error": f"{type(error).__name__}: {error}"[:2000]})
            bench.tidy()
        say({"end": left.pop(0)})
    sys.stderr.flush()
    os._exit(0)  # threads and workers of a part that failed may still be there


def end_with_parent() -> None:
    """End this process, and what it started, once the one that started it and held the other end of a pipe is gone."""
    sys.stdin.buffer.read()
    if os.getpgid(0) == os.getpid():
        os.killpg(0, signal.SIGKILL)


def is_there(module: str) -> bool:
    """Whether a module can be imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
