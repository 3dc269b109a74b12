"""As `test_waits`, where two ranks exchange what they have."""

from tests.ranks import ranks_here, run_ranks
from tests.train.test_waits import CASES, opened, waits_of_a_step
from tests.waits import NEAR

GLOO = "getattr(dist, REDUCE_SCATTER)"  # which it makes of other exchanges, and a copy in memory of its own


def waits_of_a_rank(rank, world_size, folder, sets):
    """By the name of its case."""
    import dist_train.runtime.verdict as verdict

    verdict.LATE_ON = frozenset({"cpu", "cuda"})
    group, found = ranks_here(rank, world_size).group, {}
    for name, case in CASES.items():
        place = folder / f"{name}-{rank}"
        place.mkdir()
        ranks = {"rank": rank, "local_rank": rank, "world_size": world_size, "group": group, "control_group": group}
        waits = waits_of_a_step(opened(place, sets, NEAR, {"train__micro_batch_size": 24} | case, **ranks))
        found[name] = [each for each in waits if not (each.startswith("copy_ of") and GLOO in each)]
    return found


def test_a_step_of_two_ranks_that_logs_nothing_waits_for_no_gpu(tmp_path, sets):
    assert run_ranks(2, waits_of_a_rank, tmp_path, sets) == [{name: [] for name in CASES}] * 2
