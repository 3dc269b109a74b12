"""What fails on one rank fails on all, once."""

import gc
import sys

import pytest

from dist_train.errors import UserError, WorkError
from dist_train.runtime.ranks import ALONE
from tests.ranks import ranks_here, run_ranks


def outcome(work):
    try:
        return work()
    except (UserError, WorkError, SystemExit) as error:
        return f"{type(error).__name__}: {error}"


def agree_in_many_ways(rank, world_size):
    ranks = ranks_here(rank, world_size)

    def fails_on(kinds):
        if rank in kinds:
            raise kinds[rank]("the disk is lost" if len(kinds) == 1 or "same" in kinds else f"disk {rank} is lost")
        return rank

    def speaks(error):
        with ranks.first_speaks():
            raise error

    return [
        outcome(lambda: ranks.agree(lambda: fails_on({}))),
        outcome(lambda: ranks.agree(lambda: fails_on({1: UserError}))),
        outcome(lambda: ranks.agree(lambda: fails_on({0: WorkError, 1: UserError}))),
        outcome(lambda: ranks.agree(lambda: fails_on({0: WorkError, 1: WorkError, "same": None}))),
        outcome(lambda: ranks.agree(lambda: fails_on({1: UserError}), "all")),
        outcome(lambda: ranks.agree(lambda: fails_on({0: WorkError, 1: UserError}), "all")),
        outcome(lambda: speaks(UserError("no such set"))),
    ]


def test_a_failure_is_raised_by_the_first_rank_with_every_message_or_by_all_with_the_first_one():
    first, second = run_ranks(2, agree_in_many_ways)
    assert first == [
        0,
        "UserError: rank 1: the disk is lost",
        "WorkError: rank 0: disk 0 is lost\nrank 1: disk 1 is lost",
        "WorkError: the disk is lost",
        "UserError: the disk is lost",
        "WorkError: disk 0 is lost",
        "UserError: no such set",
    ]
    ends = ["SystemExit: 2", "SystemExit: 1", "SystemExit: 1"]
    assert second == [1, *ends, "UserError: the disk is lost", "WorkError: disk 0 is lost", "SystemExit: 2"]


def test_a_process_alone_raises_its_own_error():
    error = WorkError("lost")

    def fails():
        raise error

    with pytest.raises(WorkError) as found:
        ALONE.agree(fails, "all")
    assert found.value is error


def imported_by_the_server(rank, world_size):
    return "tests.preloaded" in sys.modules, gc.isenabled(), gc.get_freeze_count() > 100_000


def test_ranks_of_tests_find_what_they_need_and_never_look_through_it():
    assert run_ranks(1, imported_by_the_server) == [(True, True, True)], "an import that fails there is silent"
