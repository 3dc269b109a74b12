"""What an evaluation judges, and how."""

from pathlib import Path
from typing import NamedTuple

from dist_train.data.aligner import Aligner
from dist_train.evaluate.batches import EmbedFn
from dist_train.evaluate.config import Templates
from dist_train.evaluate.embeddings import Embeddings
from dist_train.runtime.ranks import Ranks


class Judging(NamedTuple):
    """What is judged, and how.

    Attributes:
        embed: images [B, 3, S, S] in [-1, 1] -> embeddings [B, D].
        image_size: side S of the network's input in pixels.
        batch_size: pictures per rank and forward pass.
        ranks: the processes that share the work.
        flip: add the mirrored picture's embedding.
        neighbours: k of those that vote.
        templates: how much a picture weighs in its IJB template.
        kept: embeddings of sets by path, for whatever else is judged on the same set; None keeps none.
        aligner: what placed the faces that the network was trained on; None where that is unknown.
    """

    embed: EmbedFn
    image_size: int
    batch_size: int
    ranks: Ranks
    flip: bool
    neighbours: int = 20
    templates: Templates = "score"
    kept: dict[Path, Embeddings] | None = None
    aligner: Aligner | None = None
