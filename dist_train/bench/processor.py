"""What computes here, in words: figures of speed mean nothing without it."""

import os
import platform
from pathlib import Path
from typing import Any

import torch

_CPUINFO = Path("/proc/cpuinfo")
_MOST_BYTES = 1 << 20
_TELLING = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp")  # what decides the speed of int8


def describe_machine(device: torch.device) -> dict[str, Any]:
    """The processor, the cores that this process may use, the load before it began, and the GPU where one is used."""
    found: dict[str, Any] = {
        "processor": platform.processor() or platform.machine(),
        "instructions": [],
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
    }
    fields = _first_processor()
    if name := fields.get("model name"):
        found["processor"] = f"{name} (family {fields.get('cpu family')}, model {fields.get('model')})"
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    found["instructions"] = [flag for flag in _TELLING if flag in flags]
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def _first_processor() -> dict[str, str]:
    """The lines of /proc/cpuinfo on the first processor; {} where there is no such file."""
    try:
        with _CPUINFO.open(encoding="utf-8", errors="replace") as file:
            text = file.read(_MOST_BYTES)
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}
