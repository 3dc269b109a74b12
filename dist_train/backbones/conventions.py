"""What a network's class says about it: attributes that training asks for, under the names that `timm` gave them.

- `memory_format: torch.memory_format`, in which it computes fastest. Contiguous where it says none.
- `no_weight_decay() -> set[str]`, the names of parameters that weight decay would only harm, such as positions. None
  where it says none.
"""

import torch
from torch import nn


def memory_format(backbone: nn.Module) -> torch.memory_format:
    """The memory format in which a network and its pictures are kept."""
    return getattr(backbone, "memory_format", torch.contiguous_format)


def undecayed(backbone: nn.Module) -> set[str]:
    """Names of parameters that are never decayed, whatever a recipe says of norms, by the network and by its parts.

    Names that the network does not have are left out: `timm`'s networks list those of all their variants.
    """
    named = {
        f"{prefix}.{name}".removeprefix(".")
        for prefix, module in backbone.named_modules()
        if callable(listed := getattr(module, "no_weight_decay", None))
        for name in listed()
    }
    return named & {name for name, _ in backbone.named_parameters()}
