"""InfoNCE of queries against keys.

van den Oord et al., "Representation Learning with Contrastive Predictive Coding" (2018), in the form of MoCo v3 (Chen,
Xie, He, ICCV 2021, algorithm 1). Keys carry no gradient, so once they are gathered each rank has the exact gradient of
its own queries without a further exchange. `lightly`'s losses gather with gradients and know no momentum encoder's
keys; what is left is a product and torch's cross-entropy.
"""

from typing import NamedTuple

from torch import Tensor, nn


class Contrasted(NamedTuple):
    """What some queries gave.

    Attributes:
        loss: [] their share of the step's loss.
        hits: [] the share, of all queries of the step, of those that have their own key as the nearest of all.
    """

    loss: Tensor
    hits: Tensor


def info_nce(queries: Tensor, keys: Tensor, own: Tensor, temperature: float, samples: int) -> Contrasted:
    """2τ/G · sum over i of -log(exp(q_i·k_own(i) / τ) / sum over j of exp(q_i·k_j / τ)), queries normalised.

    The step's loss is the sum of this over both views of its G samples. The factor 2τ keeps the size of gradients
    nearly free of the temperature.

    Args:
        queries: [B, P] float32.
        keys: unit rows [M, P] float32: those of the step's G samples, then those of the queue.
        own: [B] int64, the place of each query's own key.
        temperature: τ.
        samples: G.
    """
    logits = nn.functional.normalize(queries, dim=1) @ keys.T / temperature  # [B, M]
    loss = 2 * temperature / samples * nn.functional.cross_entropy(logits, own, reduction="sum")
    return Contrasted(loss, (logits.detach().argmax(dim=1) == own).sum() / (2 * samples))
