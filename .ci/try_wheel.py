"""A wheel tried where nothing else of the project is: `python .ci/try_wheel.py DIST`.

The environment is new and holds the wheel alone. Libraries come from the environment that runs this script, by a path
file, since they are gigabytes; what the wheel says that it needs is compared with them.
"""

import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Needs no extra.
RECIPE = """
run_dir: run
data: {path: set, workers: 0}
backbone: {name: tiny, embedding_dim: 16}
train: {steps: 2, global_batch_size: 16, micro_batch_size: 16, device: cpu}
track: {wandb: disabled}
export: {onnx: false}
"""
REQUIREMENTS = """
import importlib.metadata as metadata, sys
from packaging.requirements import Requirement
wrong = []
for line in metadata.requires("headcount"):
    need = Requirement(line)
    if need.marker is None or need.marker.evaluate({"extra": ""}):
        found = metadata.version(need.name)
        if not need.specifier.contains(found, prereleases=True):
            wrong.append(f"{need}: found {found}")
sys.exit("\\n".join(wrong) or 0)
"""


def main(dist: Path) -> None:
    """Install the one wheel in `dist` and run its command; an exit status other than 0 is raised."""
    (wheel,) = dist.glob("*.whl")
    (sdist,) = dist.glob("*.tar.gz")
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        venv.create(place / "venv")
        python, headcount = (place / "venv" / "bin" / each for each in ("python", "headcount"))
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}

        def run(*command: str | Path) -> str:
            return subprocess.run(
                command, cwd=place, env=environment, check=True, stdout=subprocess.PIPE, text=True
            ).stdout

        run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", wheel.absolute())
        site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
        Path(site, "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
        where = run(python, "-c", "import dist_train; print(dist_train.__file__)").strip()
        if not where.startswith(site):
            raise SystemExit(f"{wheel.name}: dist_train is imported from {where}, expected {site}")
        run(python, "-c", REQUIREMENTS)
        print(run(headcount, "--version").strip(), "from", wheel.name, "and", sdist.name)
        subprocess.run(
            [sys.executable, "-c", "from pathlib import Path; from tests.sets import write_set; "
             f"write_set(Path({str(place / 'set')!r}))"],
            cwd=ROOT, check=True,
        )  # fmt: skip
        (place / "recipe.yaml").write_text(RECIPE)
        run(headcount, "train", "recipe.yaml")
        run(headcount, "train", "recipe.yaml", "train.steps=3", "--resume", "--allow-changes")
        if not (place / "run" / "summary.json").is_file():
            raise SystemExit(f"{wheel.name}: the run left no summary.json")
    print(f"{wheel.name}: trained and resumed")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
