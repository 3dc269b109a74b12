"""Parts of a model that stand still, for all steps or the first ones: `start.freeze`, `start.freeze_steps`."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from dist_train.backbones.conventions import lies_in, part_places
from dist_train.errors import UserError
from dist_train.replica.base import Standing
from dist_train.start.config import StartConfig

NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@dataclass(frozen=True, slots=True)
class Freezing:
    """What stands still, as a function of the step alone: a resumed run does as an unbroken one.

    Attributes:
        parts: `backbone`, `stem`, `stages.1` and so on, `norms`, `head`.
        steps: first steps in which they do; None: all.
    """

    parts: tuple[str, ...] = ()
    steps: int | None = None

    @classmethod
    def of(cls, config: StartConfig) -> "Freezing":
        """What the recipe's section `start` asks for."""
        return cls(config.freeze, config.freeze_steps)

    def at(self, step: int) -> tuple[str, ...]:
        """The parts that stand still in step `step` of 0, 1, ..."""
        return self.parts if self.steps is None or step < self.steps else ()

    def hold(self, backbone: nn.Module, step: int) -> Standing:
        """Let a backbone's parts stand still as in step `step`, by `requires_grad`, before a replica is made of it.

        Raises:
            UserError: the backbone has no such part.
        """
        ever, now = _places(backbone, self.parts), _places(backbone, self.at(step))
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(not lies_in(name, now))
        return Standing(
            modules=tuple(module for name, module in backbone.named_modules() if name in now),
            buffers={name for name, _ in backbone.named_buffers() if lies_in(name, now)},
            late={name for name, _ in backbone.named_parameters() if lies_in(name, ever)},
        )


def _places(backbone: nn.Module, parts: Iterable[str]) -> set[str]:
    """Names of the modules and parameters that make up `parts` of a backbone; "" is all of it."""
    named = {part: set(places) for part, places in part_places(backbone).items() if part != "embed"}
    known = {"backbone": {""}} | named | {"norms": set(_norms(backbone)), "head": set[str]()}
    for part in parts:
        if part not in known:
            raise UserError(f"start.freeze: {type(backbone).__name__} has no part {part}; known: {', '.join(known)}")
    return {place for part in parts for place in known[part]}


def _norms(backbone: nn.Module) -> Iterable[str]:
    """Names of the layers that normalise: torch's, and leaves of other libraries that are called so."""
    for name, module in backbone.named_modules():
        called_so = "norm" in type(module).__name__.lower() and not any(module.children())
        if isinstance(module, NORMS) or called_so:
            yield name
