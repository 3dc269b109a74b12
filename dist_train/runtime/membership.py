"""Who a process is among the ranks of a job, as the launcher's variables say."""

from collections.abc import Mapping
from typing import NamedTuple

from dist_train.errors import UserError

RANK_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
MEETING_NAMES = ("MASTER_ADDR", "MASTER_PORT")
_WAY_OUT = (
    "start the ranks by `headcount launch` or torchrun, which set all of them; for one process alone: "
    f"unset {' '.join(RANK_NAMES)}"
)


class Membership(NamedTuple):
    """A process among those of its job.

    Attributes:
        rank: 0 .. world_size - 1 over all machines.
        world_size: processes of the job.
        local_rank: this process among those of its machine.
        local_world_size: processes of this machine.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int


def read_membership(environment: Mapping[str, str]) -> Membership:
    """What torchrun's variables say; without any of them the process is alone.

    Raises:
        UserError: some are missing, no whole numbers, or do not go together, as what another launcher left behind.
    """
    given = [name for name in RANK_NAMES if environment.get(name)]
    if not given:
        return Membership(0, 1, 0, 1)
    said = ", ".join(f"{name}={environment[name]}" for name in given)
    # A launcher that starts one rank a machine may leave out the place on it.
    needed = RANK_NAMES if {"LOCAL_RANK", "LOCAL_WORLD_SIZE"} & set(given) else RANK_NAMES[:2]
    missing = [name for name in needed if name not in given]
    if missing:
        raise UserError(f"half an environment of a launcher: {said}, but no {' and no '.join(missing)}; {_WAY_OUT}")
    numbers = [_number(environment, name, 10**9) for name in needed]
    found = Membership(*numbers, *(0, 1)[: 4 - len(numbers)])
    if not (found.rank < found.world_size and found.local_rank < found.local_world_size <= found.world_size):
        raise UserError(f"the environment says {said}: a rank must be below the number of ranks; {_WAY_OUT}")
    if found.world_size > 1:
        missing = [name for name in MEETING_NAMES if not environment.get(name)]
        if missing:
            raise UserError(f"half an environment of a launcher: {said}, but no {' and no '.join(missing)}; {_WAY_OUT}")
        _number(environment, "MASTER_PORT", 2**16)
    return found


def _number(environment: Mapping[str, str], name: str, end: int) -> int:
    text = environment[name].strip()
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) < end):
        raise UserError(
            f"{name}={environment[name]!r} in the environment: expected a whole number below {end}; {_WAY_OUT}"
        )
    return int(text)
