"""What this project does on a GPU: whether it is right there, how fast it is, and how near to what the card can do.

    python benchmarks/gpu.py                                        # all parts, in 8 minutes at most
    python benchmarks/gpu.py --only device,head-correct --out out/gpu.jsonl
    python benchmarks/gpu.py --device cpu --small                   # a trial without a GPU, in seconds

Needs torch >= 2.11 and this file's repository. A part that needs a library that is not there is skipped, and its line
says which. Each result is a JSON line, printed and appended to `--out` at once; a plot, profiles and errors lie beside
it. Parts run one after the other in a process of their own; one that ends it, or takes longer than its share of the
minutes, costs its own results alone. The status is 1 where a part failed or found a wrong result.
"""

import argparse
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the repository need not be installed

from benchmarks.gpu_parts.parts import PARTS, PHOTOS, photos_in, share_s  # noqa: E402 - found by the path above

START_S = 90.0  # most for a process to import torch and to open the device
SLACK_S = 10.0  # that a part may take beyond its share, since it looks at the clock between two measurements
ERRORS = "gpu-errors.txt"


def main() -> int:
    """Run the parts; 1 where one failed."""
    options = read_options()
    if options.child:
        from benchmarks.gpu_parts.child import run_parts

        run_parts(options)
        return 0
    options.out.parent.mkdir(parents=True, exist_ok=True)
    failed = False
    with options.out.open("a", encoding="utf-8") as out:
        for line in results(options):
            text = json.dumps(line)
            print(text, flush=True)
            out.write(text + "\n")
            out.flush()
            failed |= "error" in line or line.get("ok") is False
    subprocess.run(  # in a process of its own: matplotlib may be missing, or fail
        [sys.executable, "-m", "benchmarks.gpu_parts.plot", options.out.resolve()], check=False, cwd=ROOT
    )
    return int(failed)


def read_options() -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="most time for all parts together")
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts, of {', '.join(PARTS)}")
    parser.add_argument("--out", type=Path, default=Path("gpu.jsonl"), help="file that lines are appended to")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="sizes that a CPU works off in seconds")
    parser.add_argument("--photos", type=Path, help="folder of photos for the detector, in place of drawn ones")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.parts = [name for name in options.only.split(",") if name]
    if unknown := [name for name in options.parts if name not in PARTS]:
        parser.error(f"--only: unknown parts {', '.join(unknown)}; expected some of {', '.join(PARTS)}")
    if not options.parts:
        parser.error(f"--only {options.only!r}: names no part; expected some of {', '.join(PARTS)}")
    if options.photos is not None and next(photos_in(options.photos), None) is None:
        parser.error(f"--photos {options.photos}: no folder with {', '.join(PHOTOS)}; name one, or leave it out")
    if not 0 < options.minutes <= 24 * 60:
        parser.error(f"--minutes: {options.minutes}, expected more than 0 and at most {24 * 60}")
    if options.until is None:
        options.until = time.time() + 60 * options.minutes
    return options


def results(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The lines of all parts, also of those that break their process."""
    left = list(options.parts)
    while left and time.time() < options.until:
        child = Child(options, left)
        try:
            while left:
                said = child.read()
                if said is None:
                    break
                if begun := said.get("begin"):
                    child.begin(begun, share_s(left, options.until))
                elif said.get("end"):
                    left.remove(said["end"])
                    child.begin(None, START_S)
                else:
                    yield said
            else:
                return
            yield {"benchmark": "gpu", "part": child.part or left[0], "case": "", "error": child.failure()}
            left.remove(child.part or left[0])
        finally:
            child.close()
    for name in left:
        yield {"benchmark": "gpu", "part": name, "case": "", "skipped": "no time left"}


class Child:
    """A process that works off parts, and what it says.

    Args:
        options: of the command.
        parts: to be worked off, in order.

    Attributes:
        part: that it is at; None while it starts and between parts.
    """

    def __init__(self, options: argparse.Namespace, parts: list[str]) -> None:
        command = [sys.executable, __file__, "--child", "--only", ",".join(parts), "--until", str(options.until)]
        command += ["--out", options.out, "--device", options.device, *(["--small"] if options.small else [])]
        command += ["--photos", options.photos] if options.photos else []
        self._errors = options.out.with_name(ERRORS).open("a+b")
        self._before = self._errors.seek(0, os.SEEK_END)
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.PIPE,  # whose end tells it that this process is gone
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
            start_new_session=True,  # with its data workers, it ends as a group
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._forward, args=(self._process.stdout,), daemon=True).start()
        self._overran = ""
        self.begin(None, START_S)

    def _forward(self, stdout: IO[str]) -> None:
        for line in stdout:
            self._lines.put(line)
        self._lines.put(None)

    def begin(self, part: str | None, limit_s: float) -> None:
        """From now on it is at `part`, for which it has `limit_s` seconds."""
        self.part, self._limit_s = part, limit_s
        self._end = time.monotonic() + limit_s + SLACK_S

    def read(self) -> dict[str, Any] | None:
        """What it says next; None: it has ended, or was ended since its time was over."""
        try:
            line = self._lines.get(timeout=max(0.0, self._end - time.monotonic()))
        except queue.Empty:
            what = "its share of the minutes" if self.part else "what a start may take"
            self._overran = f"took longer than {self._limit_s + SLACK_S:.0f} s, {what}"
            return None
        said: dict[str, Any] | None = None if line is None else json.loads(line)
        return said

    def failure(self) -> str:
        """Why it ended, with the last it wrote to its standard error."""
        self.close()
        self._errors.seek(self._before)
        tail = " | ".join(self._errors.read().decode(errors="replace").strip().splitlines()[-4:])
        code = self._process.returncode
        ended = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        return f"{self._overran or ended}: {tail}"[:2000]

    def close(self) -> None:
        """End it, with what it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


if __name__ == "__main__":
    sys.exit(main())
