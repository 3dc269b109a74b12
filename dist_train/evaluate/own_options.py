"""Options of `headcount eval` for sets of one's own: groups, quality and fusion; and of templates."""

from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

DEFAULT_FMR = 1e-3

ByOption = Annotated[
    list[str] | None,
    typer.Option(
        help="compares groups of each set of shards: column of identities.parquet, or field of the samples' .json; "
        "repeat for more"
    ),
]
QualityOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="norm|score|FILE",
        help="draws the error of each set of shards against discarded pairs, by the length of the network's output, "
        "the detector's score in the .json, or a .csv or .parquet with key and quality; repeat for more",
    ),
]
FmrOption = Annotated[
    list[float] | None,
    typer.Option(
        min=1e-9,
        max=0.1,
        help=f"false match rate whose threshold --by, --quality and --fuse take, {DEFAULT_FMR:g} by default; repeat "
        "for more, except with --fuse",
    ),
]

FuseOption = Annotated[
    list[Path] | None,
    typer.Option(
        help="file of embeddings by `headcount embed`, instead of a model; two or more of the same pictures, one "
        "--fuse for each, are judged alone and fused; only --fmr, --json and --report go with it"
    ),
]


class TemplateWeights(StrEnum):
    """Weights of pictures in a template by name."""

    SUM = "sum"
    NORM = "norm"
    SCORE = "score"


TemplatesOption = Annotated[
    TemplateWeights,
    typer.Option(
        help="how much a picture weighs in its IJB template: all the same (sum), by the length of its embedding "
        "(norm), or by that and the detector's score (score), as in published figures"
    ),
]

OwnEntries = Callable[[Sequence[Path]], dict[str, Any]]
"""Directories of shards -> entries of a recipe's `evaluate` section, by key."""


def own_entries(by: Sequence[str], quality: Sequence[str], fmrs: Sequence[float]) -> OwnEntries:
    """What the options ask for of each set of shards.

    Raises:
        UserError: on sets, where there are none of shards.
    """

    def entries(shards: Sequence[Path]) -> dict[str, Any]:
        from dist_train.errors import UserError
        from dist_train.evaluate.config import GroupsConfig, QualityConfig

        if (by or quality) and not shards:
            raise UserError("--by and --quality judge sets of shards; give one with --sets DIRECTORY")
        columns, qualities = dict.fromkeys(by), dict.fromkeys(quality)
        each = [(path, fmr) for path in shards for fmr in dict.fromkeys(fmrs)]
        return {
            "groups": tuple(GroupsConfig(set=path, by=column, fmr=fmr) for path, fmr in each for column in columns),
            "quality": tuple(QualityConfig(set=path, by=name, fmr=fmr) for path, fmr in each for name in qualities),
        }

    return entries
