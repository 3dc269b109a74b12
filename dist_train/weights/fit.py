"""How weights of any source fit a network: which of its tensors they give, and what does not fit."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dist_train.backbones.config import BackboneConfig
from dist_train.errors import UserError
from dist_train.runtime.text import shown_start
from dist_train.weights.names import TABLES

_COUNTERS = "num_batches_tracked"  # of BatchNorm, which no computation of ours reads


@dataclass(frozen=True, slots=True)
class Fit:
    """What becomes of weights in a network.

    Attributes:
        source: whose names they have.
        tensors: by our name, of the network's shape and dtype, copied.
        missing: lines on the network's tensors that the weights lack.
        unexpected: lines on tensors that the network does not have.
        other_shape: lines on tensors of another shape or kind.
    """

    source: str
    tensors: dict[str, Tensor]
    missing: list[str]
    unexpected: list[str]
    other_shape: list[str]

    def misfits(self) -> str:
        """Everything that does not fit, a line each, in three groups; empty where all fits."""
        groups = {"missing": self.missing, "unexpected": self.unexpected, "of another shape": self.other_shape}
        return "".join(
            f"\n  {title} ({len(lines)}):" + "".join(f"\n    {line}" for line in lines)
            for title, lines in groups.items()
            if lines
        )


def fit_weights(state: Mapping[str, Tensor], network: Mapping[str, Tensor], backbone: BackboneConfig) -> Fit:
    """Fit weights into a network, by the table of names that fits most of them.

    Args:
        state: the weights, under the names of any source.
        network: the network's state dict, of which shapes and dtypes count.
        backbone: which network it is.

    Raises:
        UserError: weights that are not finite.
    """
    source, names = _source_of(state, backbone)
    tensors: dict[str, Tensor] = {}
    missing, unexpected, other_shape = [], [], []
    for theirs, ours in names.items():
        there = "" if theirs == ours else f", there {theirs}"
        expected, found = network[ours], state.get(theirs)
        if found is None:
            if not ours.endswith(_COUNTERS):
                missing.append(f"{ours} {list(expected.shape)}{there}")
        elif found.shape != expected.shape:
            other_shape.append(f"{ours} {list(expected.shape)}{there} {list(found.shape)}")
        elif found.is_floating_point() != expected.is_floating_point() or found.is_complex():
            other_shape.append(f"{ours} {expected.dtype}{there} {found.dtype}")
        else:
            tensors[ours] = found.detach().to(expected.dtype, copy=True)
    strangers = tuple(f"{name}." for name in TABLES[source].strangers(backbone))
    unexpected = [
        f"{shown_start(name)} {list(one.shape)}"
        for name, one in state.items()
        if name not in names and not name.startswith(strangers) and not _changes_nothing(name, one, names)
    ]
    wrong = list(_not_finite(tensors))
    if wrong:
        raise UserError(
            f"{len(wrong)} tensors hold NaN or infinity: {', '.join(wrong)}; weights of a run that diverged cannot be "
            "started from"
        )
    return Fit(source, tensors, missing, unexpected, other_shape)


def _source_of(state: Mapping[str, Tensor], backbone: BackboneConfig) -> tuple[str, dict[str, str]]:
    tables: dict[str, dict[str, str]] = {}
    for source, table in TABLES.items():
        try:
            tables[source] = table.own_names(backbone)
        except UserError:  # it has no such network
            continue
    source = max(tables, key=lambda source: len(tables[source].keys() & state.keys()))
    return source, tables[source]


def _changes_nothing(name: str, tensor: Tensor, names: Mapping[str, str]) -> bool:
    """Whether a tensor is the scale 1 or the bias 0 of a BatchNorm that has neither here, as exports write them."""
    norm, _, kind = name.rpartition(".")
    if f"{norm}.running_mean" not in names:
        return False
    return bool((tensor == 1).all()) if kind == "weight" else kind == "bias" and not bool(tensor.any())


def _not_finite(tensors: Mapping[str, Tensor]) -> Iterator[str]:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            yield name
