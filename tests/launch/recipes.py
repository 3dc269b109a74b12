"""A recipe that trains in seconds, and the command line as a user starts it."""

import os
import subprocess
import sys

import yaml


def write_recipe(path, data, run_dir, **overrides):
    """`section__key=value` changes the recipe."""
    tree = {
        "run_dir": str(run_dir),
        "data": {"path": str(data), "workers": 0},
        "backbone": {"name": "tiny", "embedding_dim": 16},
        "head": {"scale": 16.0},
        "train": {
            "steps": 30,
            "global_batch_size": 48,
            "micro_batch_size": 8,
            "log_every": 1,
            "device": "cpu",
            "threads": 1,
        },
        "optimizer": {"lr": 0.005},
        "checkpoint": {"every_steps": 4},
        "track": {"wandb": "disabled"},
        "export": {"onnx": False},
    }
    tree["train"]["threads"] = 1  # then sums come out the same however ranks are spread over machines
    for key, value in overrides.items():
        section, _, name = key.partition("__")
        tree.setdefault(section, {})[name] = value
    path.write_text(yaml.safe_dump(tree))
    return path


def environment(**more):
    return os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | more


def headcount(*arguments, env=None, cwd=None):
    command = [sys.executable, "-m", "launch", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=240, env=env or environment(), cwd=cwd, check=False
    )
