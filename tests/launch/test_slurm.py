import subprocess
from pathlib import Path

import pytest

from dist_train.errors import UserError
from launch.slurm import SlurmJob
from tests.launch.recipes import environment, headcount_here, write_recipe

SLURM = ("launch", "slurm", "--gpus-per-node", 2)


def job(run_dir, **changes):
    settings = {
        "nodes": (2, 8),
        "gpus_per_node": 8,
        "procs_per_node": 8,
        "cpus_per_task": 12,
        "signal_before_s": 120,
        "requeue": True,
        "options": ("time=1-0",),
    }
    return SlurmJob(run_dir=run_dir, **(settings | changes))


def directives(script):
    return [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH --")]


def test_the_script_asks_slurm_for_what_was_asked_for(tmp_path):
    script = job(tmp_path / "my run").script(["train", "a recipe.yaml", "train.steps=3"])
    assert directives(script) == [
        'job-name="headcount-my run"',
        "nodes=2-8",
        "ntasks-per-node=8",
        "cpus-per-task=12",
        "gpus-per-node=8",
        "signal=B:USR1@120",
        "requeue",
        f'output="{tmp_path}/my run/slurm-%j.log"',
        "open-mode=append",
        "time=1-0",
    ]
    assert f"-m launch.rank '{tmp_path}/my run' train 'a recipe.yaml' train.steps=3 &\n" in script
    assert "scontrol requeue" in script


def test_a_job_without_gpus_and_without_requeue_asks_for_neither(tmp_path):
    script = job(tmp_path, gpus_per_node=0, nodes=(1, 1), requeue=False).script(["train", "a.yaml"])
    assert "nodes=1" in directives(script)
    assert "no-requeue" in directives(script)
    assert "gpus-per-node" not in script
    assert "scontrol requeue" not in script


@pytest.mark.parametrize("requeue", [True, False])
def test_the_script_is_sound_shell(tmp_path, requeue):
    script = job(tmp_path / "it's", requeue=requeue).script(["train", "it's.yaml", "track.name='a \"b\" $c'"])
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_dry_run_prints_the_script_and_leaves_nothing(tmp_path):
    recipe = write_recipe(tmp_path / "a.yaml", tmp_path / "set", tmp_path / "run")
    done = headcount_here(*SLURM, recipe, "--sbatch", "qos=high", "--partition", "gpu", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert {"qos=high", "partition=gpu", "nodes=1"} < set(directives(done.stdout))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--time", "tomorrow"], "--time tomorrow: expected MINUTES"),
        (["--nodes", "8:2"], "expected N or MIN:MAX"),
        (["head.sample_rat=1"], "did you mean head.sample_rate?"),
        ([], "sbatch is not on this machine"),
    ],
)
def test_a_mistake_is_said_at_once(tmp_path, options, message):
    recipe = write_recipe(tmp_path / "a.yaml", tmp_path / "set", tmp_path / "run")
    done = headcount_here(*SLURM, recipe, *options, env=environment(PATH=str(tmp_path)))
    assert (done.returncode, done.stderr.count(message)) == (2, 1), done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_that_is_there_is_not_submitted_without_resume(tmp_path):
    recipe = write_recipe(tmp_path / "a.yaml", tmp_path / "set", tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("")
    refused = headcount_here(*SLURM, recipe, "--dry-run")
    assert refused.returncode == 2
    assert "continue it with --resume" in refused.stderr
    taken = headcount_here(*SLURM, recipe, "--dry-run", "--resume")
    assert taken.returncode == 0, taken.stderr
    assert "--resume &" in taken.stdout


@pytest.mark.parametrize(
    ("name", "changes", "found"),
    [
        ("run\n#SBATCH --wrap=touch harm", {}, r"run_dir: .*\\n#SBATCH.* has quotes, backslashes or line ends"),
        ('run" --wrap="touch harm', {}, "run_dir: .* has quotes"),
        ("run\\", {}, "run_dir: .* has quotes, backslashes"),
        ("run", {"options": ("qos=a\rb",)}, r"option of sbatch qos: 'a\\rb' has"),
        ("run", {"options": ("qos --wrap=touch harm",)}, "option of sbatch 'qos --wrap=touch harm': expected NAME"),
        ("run", {"options": ('comment="a b"',)}, "option of sbatch comment: .* has quotes"),
    ],
)
def test_no_value_adds_a_line_or_an_option_to_the_script(tmp_path, name, changes, found):
    with pytest.raises(UserError, match=found):
        job(tmp_path / name, **changes).script(["train", "a.yaml"])


def test_a_setting_with_a_line_end_is_refused_by_its_key():
    with pytest.raises(UserError, match=r"track\.name=a\\n#SBATCH --wrap=touch harm' has line ends"):
        job(Path("run")).script(["train", "a.yaml", "track.name=a\n#SBATCH --wrap=touch harm"])


@pytest.mark.parametrize("name", ["a b", "it's", "a#b", "a;b", "a$(touch harm)b", "a`touch harm`b", "ä"])
def test_a_run_of_any_printable_name_is_one_option_and_runs_nothing(tmp_path, name):
    script = job(tmp_path / name, options=()).script(["true"])
    (given,) = [line for line in directives(script) if line.startswith("job-name=")]
    assert given in (f"job-name=headcount-{name}", f'job-name="headcount-{name}"')
    assert given.endswith('"') or not set(" '#;$`()") & set(name)
    # What the shell makes of the script's one line with paths in it, with `srun` and the interpreter as stand-ins.
    (line,) = [line for line in script.splitlines() if "-m launch.rank" in line]
    shown = subprocess.run(
        ["bash", "-c", "printf '%s\\n' " + line.strip().removesuffix("&")],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    assert str(tmp_path / name) in shown.stdout.splitlines()
    assert list(tmp_path.iterdir()) == []
