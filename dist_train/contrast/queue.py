"""The keys of earlier steps, which are negatives as well."""

from typing import Any

import torch
from torch import Tensor, nn

from dist_train.contrast.config import ContrastConfig
from dist_train.errors import UserError


class KeyQueue:
    """A ring of the last keys, equal on all ranks; at first random unit rows.

    He et al., "Momentum Contrast" (CVPR 2020), section 3.2.

    Args:
        size: K keys.
        dim: P numbers of a key.
        seed: of the first rows.
        device: where they are kept.

    Attributes:
        keys: [K, P] float32 unit rows.
    """

    def __init__(self, size: int, dim: int, seed: int, device: torch.device) -> None:
        drawn = torch.randn(size, dim, generator=torch.Generator().manual_seed(seed))
        self.keys = nn.functional.normalize(drawn, dim=1).to(device)
        self._next = torch.zeros((), dtype=torch.int64, device=device)  # the oldest key's place

    def push(self, keys: Tensor, proceed: Tensor | None = None) -> None:
        """Put keys [G, P], at most K, in the place of the oldest; nowhere if `proceed`, [] bool there, is false."""
        places = (self._next + torch.arange(len(keys), device=keys.device)) % len(self.keys)
        after = (self._next + len(keys)) % len(self.keys)
        if proceed is not None:
            keys, after = torch.where(proceed, keys, self.keys[places]), torch.where(proceed, after, self._next)
        self.keys[places] = keys
        self._next.copy_(after)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"keys": self.keys, "next": self._next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.keys.copy_(state["keys"])
        self._next.copy_(state["next"])


def check_queue(section: ContrastConfig, batch: int, pictures: int) -> None:
    """See that a queue holds a step's keys, and that not every picture meets an old key of its own there.

    Args:
        section: the recipe's section `contrast`.
        batch: pictures of a step, over all ranks.
        pictures: of the set.

    Raises:
        UserError: it is too small or too large.
    """
    if section.queue and not batch <= section.queue <= pictures:
        raise UserError(
            f"contrast.queue {section.queue:,}: expected 0 for none, or from the {batch:,} pictures of a step "
            f"(train.global_batch_size) to the {pictures:,} of the set; a larger one holds old keys of every picture, "
            "against which the picture itself would be set"
        )
