"""What a launcher's variables say, and half of them."""

import pytest

from dist_train.errors import UserError, WorkError
from dist_train.runtime import ranks as ranks_module
from dist_train.runtime.membership import Membership, read_membership
from dist_train.runtime.ranks import join_ranks
from launch.rank import slurm_ranks
from tests.launch.recipes import headcount_here, write_recipe
from tests.ranks import free_port

WHOLE = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "node0",
    "MASTER_PORT": "29400",
}


def test_a_whole_environment_is_taken_as_it_is():
    assert read_membership({}) == Membership(0, 1, 0, 1)
    assert read_membership(WHOLE) == Membership(3, 4, 1, 2)
    one_a_machine = {name: WHOLE[name] for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
    assert read_membership(one_a_machine) == Membership(3, 4, 0, 1)
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    assert read_membership(alone) == Membership(0, 1, 0, 1)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE=4, but no RANK;"),
        ({"RANK": "1"}, "RANK=1, but no WORLD_SIZE;"),
        ({"RANK": "abc"}, "RANK=abc, but no WORLD_SIZE;"),
        ({"LOCAL_RANK": "0"}, "LOCAL_RANK=0, but no RANK and no WORLD_SIZE and no LOCAL_WORLD_SIZE;"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "but no MASTER_ADDR and no MASTER_PORT;"),
        (WHOLE | {"RANK": "abc"}, "RANK='abc' in the environment: expected a whole number"),
        (WHOLE | {"RANK": "-1"}, "RANK='-1' in the environment"),
        (WHOLE | {"RANK": "²"}, "RANK='²' in the environment"),
        (WHOLE | {"WORLD_SIZE": "9" * 5000}, "in the environment: expected a whole number"),
        (WHOLE | {"RANK": "4"}, "a rank must be below the number of ranks"),
        (WHOLE | {"LOCAL_RANK": "2"}, "a rank must be below the number of ranks"),
        (WHOLE | {"LOCAL_WORLD_SIZE": "8"}, "a rank must be below the number of ranks"),
        (WHOLE | {"WORLD_SIZE": "0"}, "a rank must be below the number of ranks"),
        (WHOLE | {"MASTER_PORT": "http"}, "MASTER_PORT='http' in the environment"),
        (WHOLE | {"MASTER_PORT": "65536"}, "MASTER_PORT='65536' in the environment"),
    ],
)
def test_half_an_environment_is_a_mistake_that_names_what_is_missing_and_the_way_out(environment, message):
    with pytest.raises(UserError) as caught:
        read_membership(environment)
    assert message in str(caught.value)
    assert "for one process alone: unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE" in str(caught.value)


@pytest.mark.parametrize("command", ["train", "eval", "embed"])
def test_every_command_that_joins_ranks_says_it_in_one_line(tmp_path, command):
    recipe = write_recipe(tmp_path / "a.yaml", tmp_path / "set", tmp_path / "run")
    arguments = {
        "train": (recipe,),
        "eval": (tmp_path / "a.onnx", "--sets", tmp_path / "a.bin"),
        "embed": (tmp_path / "a.onnx", tmp_path, tmp_path / "out.parquet"),
    }
    done = headcount_here(command, *arguments[command], env={"WORLD_SIZE": "4"})
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: half an environment of a launcher: WORLD_SIZE=4, but no RANK;")
    assert done.stderr.count("\n") == 1


def test_a_rank_that_does_not_come_is_a_failure_that_says_where_it_was_waited_for(monkeypatch):
    port = free_port()
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(ranks_module, "TIMEOUT_MARGIN_S", 0.0)
    with pytest.raises(WorkError, match=rf"^rank 0 of 2: the ranks did not all meet at 127.0.0.1:{port} \(Timed out"):
        join_ranks("cpu", 1, timeout_s=1.0)


STEP = {"SLURM_PROCID": "2", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2"}


def test_a_step_of_srun_is_read_whole_or_refused():
    assert slurm_ranks(STEP)["WORLD_SIZE"] == "8"
    assert slurm_ranks({}) == {}
    uneven = slurm_ranks(STEP | {"SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "3"})
    assert read_membership(uneven | {"MASTER_ADDR": "a", "MASTER_PORT": "1"}).local_world_size == 2
    for name in ("SLURM_LOCALID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES"):
        with pytest.raises(UserError, match=rf"half an environment of srun: {name}=None, expected a whole number"):
            slurm_ranks({key: value for key, value in STEP.items() if key != name})
    with pytest.raises(UserError, match="SLURM_PROCID='x'"):
        slurm_ranks(STEP | {"SLURM_PROCID": "x"})
