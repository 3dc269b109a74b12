"""What `headcount prune` can be told by name; without torch, for the command line."""

from enum import StrEnum


class Scope(StrEnum):
    """What is left out."""

    embedding = "embedding"
    channels = "channels"


class By(StrEnum):
    """How much a channel matters."""

    magnitude = "magnitude"
    batchnorm = "batchnorm"
    first_order = "first-order"
