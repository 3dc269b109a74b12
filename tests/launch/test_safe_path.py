"""Folders in the working directory that have the names of optional modules: no command and no rank imports them.

Libraries try modules that may not be there: `z3` in torch, `mpi4py` in DeepSpeed, `pandas` in others. Python that is
started by `-m` looks in the working directory first, and whatever lies there by such a name is imported.
"""

import json
import os
import subprocess
import sys

import pytest

from tests.launch.recipes import environment, write_recipe
from tests.prep.jobs import portraits
from tests.sets import write_set

# Found in the sources of torch, torchvision, DeepSpeed, onnx, onnxscript, onnxruntime, pyarrow, fsspec, pydantic, tqdm,
# matplotlib, wandb, numpy, Pillow, fontTools, sympy and networkx as imported below the top of a file.
# fmt: off
OPTIONAL = [
    "IPython", "_pytest", "aiohttp", "amdsmi", "apex", "azure", "boto3", "botocore", "brotli", "cairo", "cloudpickle",
    "comet_ml", "cpuinfo", "cupy", "cutlass", "cython", "datasets", "deep_ep", "defusedxml", "dill", "dotenv",
    "einops", "email_validator", "etcd", "fairscale", "flash_attn", "flint", "functorch", "gcsfs", "gmpy2", "google",
    "graphviz", "gymnasium", "h5py", "habana_frameworks", "halide", "huggingface_hub", "hypothesis",
    "intel_extension_for_pytorch", "ipywidgets", "jax", "js", "keras", "libfb", "lightning", "llama", "lxml", "lz4",
    "megatron", "ml_dtypes", "mlflow", "moviepy", "mpi4py", "msgpack", "mup", "mxnet", "numba", "numexpr", "nvtx",
    "oneccl_bindings_for_pytorch", "onnxruntime_extensions", "opt_einsum", "optree", "optuna", "orjson", "pandas",
    "pkg_resources", "plotly", "polars", "pycocotools", "pydot", "pygraphviz", "pynvml", "ray", "redis", "s3fs",
    "safetensors", "scipy", "sklearn", "snappy", "tabulate", "tensorboard", "tensorflow", "tensorrt", "threadpoolctl",
    "torch_mlu", "torch_npu", "torch_xla", "torchaudio", "torchrec", "tornado", "transformers", "triton", "tvm",
    "uharfbuzz", "ujson", "unicodedata2", "weave", "win32api", "xformers", "xgboost", "z3", "zopfli", "zstandard",
]
# fmt: on
# Of the standard library: what the interpreter and multiprocessing load at their very start.
STANDARD = ["queue", "random", "secrets", "select", "struct", "tempfile"]


@pytest.fixture(scope="module")
def trap(tmp_path_factory):
    """A working directory with a folder of each name, which leaves a note where it is imported, and fails."""
    base = tmp_path_factory.mktemp("trap")
    here, notes = base / "here", base / "notes"
    notes.mkdir()
    for name in [*OPTIONAL, *STANDARD]:
        (here / name).mkdir(parents=True)
        (here / name / "__init__.py").write_text(
            f"open({str(notes / name)!r}, 'w').close()\nraise RuntimeError('{name} of the working directory')\n"
        )
    write_set(base / "set")
    portraits(base / "photos")
    return base


@pytest.fixture
def outside(monkeypatch):
    """Neither the variable that makes a path safe nor anything else that this test run sets."""
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(entry for entry in sys.path if entry))


def headcount(trap, *arguments):
    """The command as `headcount` starts it: by a script that lies elsewhere."""
    script = trap / "headcount"
    script.write_text("if __name__ == '__main__':\n    from launch.cli import main\n\n    main()\n")
    done = subprocess.run(
        [sys.executable, script, *map(str, arguments)],
        cwd=trap / "here",
        env=environment(),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (trap / "notes").iterdir()) == [], done.stderr
    return done


def test_python_itself_would_import_them(trap):
    done = subprocess.run([sys.executable, "-c", "import z3"], cwd=trap / "here", capture_output=True, check=False)
    assert done.returncode == 1
    (trap / "notes" / "z3").unlink()


def test_two_ranks_train_evaluate_and_export(trap, outside):
    run = {"train__steps": 3, "train__global_batch_size": 16, "export__onnx": True, "data__workers": 1}
    recipe = write_recipe(trap / "recipe.yaml", trap / "set", trap / "run", **run)
    headcount(trap, "launch", "local", recipe, "--ranks", 2)
    assert (trap / "run" / "model.onnx").exists()
    assert json.loads((trap / "run" / "summary.json").read_text())


def test_photos_are_aligned_and_the_set_is_looked_at(trap, outside):
    headcount(trap, "prep", "align", trap / "photos", trap / "aligned", "--workers", 1)
    headcount(trap, "data", "verify", trap / "aligned", "--workers", 1)


def test_the_command_started_by_python_is_safe_too(trap, outside):
    command = [sys.executable, "-m", "launch", "data", "inspect", str(trap / "set")]
    done = subprocess.run(command, cwd=trap / "here", env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, list((trap / "notes").iterdir())) == (0, []), done.stderr


def test_a_folder_that_the_user_names_is_looked_in_all_the_same(tmp_path, outside, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "colorama.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "mine"), prepend=os.pathsep)
    code = "import subprocess, sys; from dist_train.runtime.processes import child_environment; "
    code += (
        "subprocess.run([sys.executable, '-c', 'import colorama; print(colorama.__file__)'], env=child_environment({}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str(tmp_path / "mine" / "colorama.py"), done.stderr


def test_a_batch_script_gives_ranks_a_safe_path(trap, outside):
    recipe = write_recipe(trap / "slurm.yaml", trap / "set", trap / "other")
    script = headcount(trap, "launch", "slurm", recipe, "--gpus-per-node", 0, "--dry-run").stdout
    assert script.index("PYTHONSAFEPATH=1") < script.index(sys.executable)
