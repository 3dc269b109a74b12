"""Inputs are made, read in child processes with limits of time and memory, and their outcomes counted."""

import base64
import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fuzz.reader import Reader

FAULTS = ("TRACEBACK", "HANG", "MEMORY", "CRASH")
VERDICTS = ("accepted", "refused", *FAULTS)
MOST_S = 20.0  # for an input
START_S = 300.0  # for imports, and for making and reading the seeds


@dataclass
class Fault:
    """Inputs that failed alike; the first of them."""

    reader: str
    verdict: str
    where: str
    detail: str
    number: int
    how: str
    saved: Path | None = None
    count: int = 1


@dataclass
class Outcome:
    """What became of all inputs: verdicts by reader, faults by kind, seconds and growth of memory by reader."""

    counts: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    faults: dict[tuple[str, str, str], Fault] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    slowest_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    grown_mb: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @property
    def sound(self) -> bool:
        """Whether every reader accepted its seeds and no input failed."""
        return not self.faults and not self.problems

    def table(self) -> str:
        """Counts by reader, and a paragraph for each kind of fault."""
        heads = ("reader", "inputs", *VERDICTS, "slowest s", "memory MB", "seconds")
        rows = [heads]
        total: Counter[str] = Counter()
        for name, counts in self.counts.items():
            total += counts
            figures = f"{self.slowest_s[name]:.2f}", str(self.grown_mb[name]), f"{self.seconds[name]:.0f}"
            rows.append((name, str(counts.total()), *(str(counts[verdict]) for verdict in VERDICTS), *figures))
        rows.append(("all", str(total.total()), *(str(total[verdict]) for verdict in VERDICTS), "", "", ""))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
            for row in rows
        ]
        for fault in sorted(self.faults.values(), key=lambda each: (each.reader, each.where)):
            lines += [
                "",
                f"{fault.verdict} x{fault.count} {fault.reader}: {fault.where}: {fault.detail}",
                f"  input {fault.number}: {fault.how}",
                f"  again: python -m tests.fuzz --again {fault.saved}",
            ]
        return "\n".join([*lines, *(f"\nPROBLEM {problem}" for problem in self.problems)])


class Child:
    """A worker process."""

    def __init__(self, module: str, scratch: Path) -> None:
        self._log, self._current = log, current = scratch / "log", scratch / "current"
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.fuzz.worker", module, str(current)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "CUDA_VISIBLE_DEVICES": ""},
            )
        self._answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")

    def order(self, reader: str, seed: int, start: int, stop: int) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"reader": reader, "seed": seed, "start": start, "stop": stop}) + "\n")
        self._process.stdin.flush()

    def answer(self, timeout_s: float) -> dict[str, Any] | str:
        """The next answer; HANG or CRASH where there is none."""
        try:
            line = self._answers.get(timeout=timeout_s)
        except queue.Empty:
            self._process.send_signal(signal.SIGUSR1)
            time.sleep(0.5)
            return "HANG"
        return json.loads(line) if line else "CRASH"

    def epitaph(self) -> dict[str, str]:
        """How it ended, with the last lines that it wrote to its log, and the input that it was at."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._process.kill()
        status = self._process.wait()
        tail = self._log.read_text(encoding="utf-8", errors="replace")[-1500:]
        content = self._current.read_bytes() if self._current.exists() else b""
        place = re.search(r'/((?:data_prep|dist_train|launch)/\S+\.py)", line (\d+)', tail)  # the innermost is first
        where = f"{place[1]}:{place[2]}" if place else ""
        return {"detail": f"status {status}; {tail}", "where": where, "content": base64.b64encode(content).decode()}

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def shares(readers: Mapping[str, Reader], inputs: int) -> dict[str, int]:
    """Inputs for each reader, by weight; at least `inputs` in all."""
    total = sum(reader.weight for reader in readers.values())
    return {name: max(1, -int(-inputs * reader.weight // total)) for name, reader in readers.items()}


def campaign(
    readers: Mapping[str, Reader], module: str, inputs: int, seed: int, jobs: int, saved: Path, most_s: float = MOST_S
) -> Outcome:
    """Read `inputs` changed inputs.

    Args:
        readers: to be tried, of those in `module`.
        module: has `READERS`.
        inputs: for all readers together.
        seed: same seed, same inputs.
        jobs: child processes.
        saved: directory for inputs that failed.
        most_s: seconds for an input.
    """
    outcome, lock = Outcome(), threading.Lock()
    todo: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
    for name, count in shares(readers, inputs).items():
        outcome.counts[name] = Counter()
        todo.put((name, count))

    def work() -> None:
        with tempfile.TemporaryDirectory() as scratch:
            for name, answer in _answers(module, todo, seed, most_s, Path(scratch)):
                with lock:
                    _count(outcome, name, seed, answer, saved)

    threads = [threading.Thread(target=work) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcome


def _answers(
    module: str, todo: "queue.SimpleQueue[tuple[str, int]]", seed: int, most_s: float, scratch: Path
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Answers to all inputs of one reader after another, from a child that is replaced when it hangs or dies."""
    child = None
    try:
        while True:
            try:
                name, stop = todo.get_nowait()
            except queue.Empty:
                return
            start = 0
            while start < stop:
                child = child or Child(module, scratch)
                child.order(name, seed, start, stop)
                ready = child.answer(START_S)
                if isinstance(ready, str):
                    yield name, {"problem": f"{name}: {ready} before its first input: {child.epitaph()['detail']}"}
                    child = None
                    break
                if ready["problem"] and not start:
                    yield name, {"problem": f"{name}: {ready['problem']}"}
                while start < stop:
                    answer = child.answer(most_s)
                    if isinstance(answer, str):
                        yield name, {"verdict": answer, "number": start, **child.epitaph()}
                        child, start = None, start + 1
                        break
                    yield name, answer
                    start += 1
    finally:
        if child is not None:
            child.end()


def _count(outcome: Outcome, name: str, seed: int, answer: dict[str, Any], saved: Path) -> None:
    if "problem" in answer:
        outcome.problems.append(answer["problem"])
        return
    verdict, number = answer["verdict"], answer["number"]
    outcome.counts[name][verdict] += 1
    seconds = answer.get("seconds", 0.0)
    outcome.seconds[name] += seconds
    outcome.slowest_s[name] = max(outcome.slowest_s[name], seconds)
    outcome.grown_mb[name] = max(outcome.grown_mb[name], answer.get("grown_mb", 0))
    if verdict not in FAULTS:
        return
    detail, where = answer["detail"], answer.get("where") or verdict
    key = name, verdict, where if verdict in ("HANG", "CRASH") else where + detail.partition(":")[0]
    if key in outcome.faults:
        outcome.faults[key].count += 1
        return
    saved.mkdir(parents=True, exist_ok=True)
    file = saved / f"{file_name(name)}.{answer.get('scene', '')}.{seed}.{number}"
    file.write_bytes(base64.b64decode(answer["content"]))
    outcome.faults[key] = Fault(name, verdict, where, detail, number, answer.get("how", ""), file)


def file_name(reader: str) -> str:
    """A reader's name as it is in the names of files."""
    return "".join(letter if letter.isalnum() else "_" for letter in reader)
