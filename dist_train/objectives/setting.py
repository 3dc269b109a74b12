"""What an objective is built in."""

from dataclasses import dataclass

from dist_train.config import RunConfig
from dist_train.data.loader import Loader
from dist_train.head import Head
from dist_train.objectives.gathering import Gathering
from dist_train.runtime.ranks import Ranks


@dataclass(frozen=True, slots=True)
class ObjectiveSetting:
    """What an objective is built in.

    Attributes:
        config: the whole recipe.
        ranks: this process among the job's.
        loader: of the batches that will come.
        head: the classifier; None where the recipe has none.
        gathering: brings together the embeddings of all ranks, once for all objectives.
        resumes: a checkpoint will be loaded, so that what rows start from is not read.
    """

    config: RunConfig
    ranks: Ranks
    loader: Loader
    head: Head | None
    gathering: Gathering
    resumes: bool
