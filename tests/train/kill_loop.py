"""Runs that are killed at random again and again must end with the weights of the run that was never killed.

    python -m tests.train.kill_loop --kills 50

Two ranks under torchrun's agent, as `headcount launch torchrun` starts them. `kill -9` of a rank, of the agent, while
files are written, before and after a checkpoint's rename, while old checkpoints are removed. Prints a JSON line.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from dist_train.checkpoint.store import committed_checkpoints
from dist_train.run_files import CONFIG_NAME
from launch.torchrun import SETTINGS, TorchrunJob
from tests.launch.recipes import environment, write_recipe
from tests.sets import write_set
from tests.train.killed_rank import KINDS, PLAN, Kill, left, write_plan

RANKS, STEPS, EVERY = 2, 24, 4
KILLS_PER_RUN = 5


def random_kills(chance: random.Random, count: int) -> list[Kill]:
    """Kills at rising steps. Only rank 0 renames and removes checkpoints."""
    kills = []
    for step in sorted(chance.randrange(STEPS - EVERY) for _ in range(count)):
        kind = chance.choice(KINDS)
        rank = chance.randrange(RANKS) if kind in ("rank", "launcher", "save", "checksums") else 0
        delay_s = chance.uniform(0, 0.1) if kind in ("rank", "launcher", "save") else 0.0
        kills.append(Kill(kind, step, rank, delay_s))
    return kills


def train(folder: Path, data: Path, kills: list[Kill]) -> dict[str, torch.Tensor]:
    """A whole run in `folder`, started again after each kill; all tensors of its last checkpoint.

    Raises:
        AssertionError: the run fails by itself, or a kill has not struck.
    """
    run_dir, plan = folder / "run", folder / "plan"
    write_plan(plan, kills)
    recipe = write_recipe(
        folder / "recipe.yaml",
        data,
        run_dir,
        train__steps=STEPS,
        train__global_batch_size=16,
        train__micro_batch_size=8,
        head__sample_rate=0.5,
        data__images_per_class=4,
        objectives__center={"weight": 0.1},  # two terms with state of their own
        objectives__sample_to_sample={"weight": 0.01, "warmup_steps": 8},
        checkpoint__every_steps=EVERY,
    )
    for start in range(len(kills) + 1):
        job = TorchrunJob(1, 1, RANKS, "localhost:0", f"{folder.name}-{start}", max_restarts=len(kills))
        resume = ["--resume"] if (run_dir / CONFIG_NAME).exists() else []
        command = job.arguments(["tests.train.killed_rank", str(run_dir), "train", str(recipe), *resume])
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", *command],
            env=environment(**SETTINGS, PYTHONPATH=os.pathsep.join(sys.path), **{PLAN: str(plan)}),
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        if done.returncode == 0:
            break
        assert done.returncode == -9, done.stderr  # the agent was killed; otherwise it restarts the ranks itself
    assert not left(plan), f"never struck: {[file.read_text() for file in left(plan)]}"
    last = committed_checkpoints(run_dir)[-1]
    assert last.name.endswith(f"{STEPS:08d}"), last
    assert not list(last.parent.glob(".*-step-*")), "leftovers of killed saves"
    dcp_to_torch_save(last, folder / "whole.pt")
    return dict(flat(torch.load(folder / "whole.pt", weights_only=False)))


def flat(tree: object, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from flat(value, f"{prefix}{key}.")
    else:
        yield prefix, torch.as_tensor(tree)


def differing(whole: dict[str, torch.Tensor], killed: dict[str, torch.Tensor]) -> list[str]:
    """Names of tensors that are not the same bit for bit."""
    names = whole.keys() ^ killed.keys()
    return sorted(names | {name for name in whole.keys() & killed.keys() if not torch.equal(whole[name], killed[name])})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    kinds, bad, runs, begin = Counter[str](), [], 0, time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_set(folder / "set")
        (folder / "whole").mkdir()
        whole = train(folder / "whole", folder / "set", [])
        while (missing := options.kills - kinds.total()) > 0:
            runs += 1
            kills = random_kills(chance, min(KILLS_PER_RUN, missing))
            (folder / f"killed-{runs}").mkdir()
            bad += differing(whole, train(folder / f"killed-{runs}", folder / "set", kills))
            kinds.update(kill.kind for kill in kills)
            sys.stderr.write(f"run {runs}: {', '.join(kill.kind for kill in kills)}\n")
    line = {
        "benchmark": "kills",
        "case": f"{kinds.total()}_random",
        "ours": len(bad),
        "baseline": None,
        "unit": "tensors that differ",
        "kinds": dict(sorted(kinds.items())),
        "seconds": round(time.monotonic() - begin),
        "run": {"ranks": RANKS, "steps": STEPS, "runs": runs, "tensors": len(whole), "seed": options.seed},
    }
    sys.stdout.write(json.dumps(line) + "\n")
    return int(bool(bad))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
