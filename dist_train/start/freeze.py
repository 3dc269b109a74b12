"""Parts of a model that stand still, for all steps, the first ones or a phase: `start.freeze`, `start.freeze_steps`."""

from collections.abc import Iterable, Sequence
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
        later: by step, in rising order, the parts that stand still from it on instead.
    """

    parts: tuple[str, ...] = ()
    steps: int | None = None
    later: tuple[tuple[int, tuple[str, ...]], ...] = ()

    @classmethod
    def of(cls, sections: Sequence[tuple[int, StartConfig]]) -> "Freezing":
        """What sections `start` ask for, each with the step from which on it holds; the first holds from step 0."""
        (_, first), *others = sections
        held = [first, *(section for _, section in others)]
        changes: list[tuple[int, tuple[str, ...]]] = []
        for before, (begin, section) in zip(held, others, strict=False):
            # A phase that does not speak of freezing keeps `freeze_steps`, and so what came of it.
            if (section.freeze, section.freeze_steps) != (before.freeze, before.freeze_steps):
                changes.append((begin, section.freeze))
        return cls(first.freeze, first.freeze_steps, tuple(changes))

    def at(self, step: int) -> tuple[str, ...]:
        """The parts that stand still in step `step` of 0, 1, ..."""
        for begin, parts in reversed(self.later):
            if step >= begin:
                return parts
        return self.parts if self.steps is None or step < self.steps else ()

    def until(self, step: int) -> int | None:
        """The step at which what stands still in `step` may change; None: never."""
        ends = [begin for begin, _ in self.later]
        if self.steps is not None and not any(begin <= step for begin in ends):
            ends.append(self.steps)
        return min((end for end in ends if end > step), default=None)

    @property
    def ever(self) -> tuple[str, ...]:
        """The parts that stand still in any step."""
        return tuple(dict.fromkeys([*self.parts, *(part for _, parts in self.later for part in parts)]))

    def hold(self, backbone: nn.Module, step: int) -> Standing:
        """Let a backbone's parts stand still as in step `step`, by `requires_grad`, before a replica is made of it.

        Raises:
            UserError: the backbone has no such part.
        """
        ever, now = _places(backbone, self.ever), _places(backbone, self.at(step))
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
