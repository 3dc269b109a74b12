"""Whether identities of one name in two sets are one."""

from enum import StrEnum


class Sameness(StrEnum):
    """What equal names in two sets mean."""

    SAME_NAME = "same-name"
    DISTINCT = "distinct"
