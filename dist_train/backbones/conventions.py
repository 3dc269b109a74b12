"""What a network's class says about it: attributes that training asks for, under the names that `timm` gave them.

- `memory_format: torch.memory_format`, in which it computes fastest. Contiguous where it says none.
- `no_weight_decay() -> set[str]`, the names of parameters that weight decay would only harm, such as positions. None
  where it says none.
- `parts() -> dict[str, list[str]]`, its parts from the input to the embedding: `stem`, `stages.1` and so on, `embed`,
  each with the dotted names of the modules and parameters that it is made of. One whole where it says none.
- `draw(seed, step, positions)`, called before each forward pass in training with the places [B] of its samples in the
  sample order, on the CPU: a network draws here whatever it draws for a sample, as a function of these, so that it is
  the same on any number of ranks and after a resume. Nothing where it has none; what it draws by torch's own generator
  is a function of seed, step and rank.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


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


def draw(backbone: nn.Module, seed: int, step: int, positions: Tensor) -> None:
    """Let a network draw for the samples at `positions` [B] of the next forward pass, see `draw` above."""
    if callable(draws := getattr(backbone, "draw", None)):
        draws(seed, step, positions)


def part_places(backbone: nn.Module) -> dict[str, list[str]]:
    """What each part of a network is made of, see `parts` above; {} where it names no parts.

    Raises:
        ValueError: a parameter that is in no part, or in two.
    """
    listed = getattr(backbone, "parts", None)
    parts: dict[str, list[str]] = listed() if callable(listed) else {}
    for name, _ in backbone.named_parameters() if parts else ():
        if (count := sum(lies_in(name, places) for places in parts.values())) != 1:
            raise ValueError(f"{type(backbone).__name__}.parts(): {name} is in {count} parts, expected 1")
    return parts


def lies_in(name: str, places: Iterable[str]) -> bool:
    """Whether a parameter or buffer is one of `places`, or in a module that is; "" is the whole network."""
    return any(not place or name == place or name.startswith(f"{place}.") for place in places)
