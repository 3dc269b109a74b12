"""Whether a model tells pictures apart at all: one that does not is untrained, or given what it was not made for."""

import logging

import numpy as np
import torch
from torch import Tensor

NEARLY_SAME = 0.9  # median cosine of different identities; of models that work it is 0.0 to 0.3
_PAIRS = 10_000

logger = logging.getLogger(__name__)


def note_on_sameness(different: np.ndarray) -> list[str]:
    """What to say of cosines of pictures of different identities that are nearly all alike; nothing if they are not."""
    if not len(different) or (median := float(np.median(different))) <= NEARLY_SAME:
        return []
    return [
        f"pictures of different identities have nearly the same embedding (median cosine {median:.3f}): the model is "
        "not trained, or pictures are given in another range than it takes; for an ONNX file see --input-range"
    ]


def warn_of_sameness(name: str, features: Tensor, labels: Tensor | None = None) -> None:
    """Log if embeddings [N, D] of different identities are nearly the same.

    Args:
        name: of the set, for the message.
        features: embeddings, of any length.
        labels: identities int64 [N]; None: not known, each picture is taken for another's.
    """
    count = len(features)
    if count < 2:
        return
    generator = np.random.default_rng(0)
    left, right = (torch.from_numpy(generator.integers(0, count, min(_PAIRS, count * count))) for _ in range(2))
    others = left != right if labels is None else labels[left] != labels[right]
    cosines = torch.nn.functional.cosine_similarity(features[left[others]], features[right[others]])
    for note in note_on_sameness(cosines.numpy()):
        logger.warning("%s: %s%s", name, note, "" if labels is not None else " (or all pictures show the same)")
