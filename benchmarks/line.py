"""The line that a benchmark prints for a case: what it measured, and on which processor."""

import json
import os
import platform
from pathlib import Path
from typing import Any

NUMBERS = {"family": "cpu family", "model": "model", "stepping": "stepping"}  # as /proc/cpuinfo names them


def print_line(line: dict[str, Any]) -> None:
    """Print the line of a case, with the processor."""
    print(json.dumps(line | {"processor": processor()}), flush=True)


def processor() -> str:
    """Name, family, model and stepping, and how many cores this process may use."""
    fields: dict[str, str] = {}
    try:
        for row in Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines():
            name, _, value = row.partition(":")
            fields[name.strip()] = value.strip()
    except OSError:  # not Linux
        pass
    name = fields.get("model name") or platform.processor() or platform.machine()
    numbers = [f"{word} {fields[key]}" for word, key in NUMBERS.items() if key in fields]
    return ", ".join([name, *numbers, f"{len(os.sched_getaffinity(0))} cores"])
