"""The `evaluate` section of a configuration."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, field_validator

from dist_train.errors import UserError
from dist_train.section import Section


def set_name(path: Path) -> str:
    """What a set is called in figures and tables: the name of its file without the ending, or of its directory."""
    return path.stem if path.suffix == ".bin" else path.resolve().name


def check_names(sets: Sequence[Path]) -> None:
    """Figures of two sets of one name could not be told apart.

    Raises:
        UserError: two are called alike.
    """
    named: dict[str, Path] = {}
    for path in sets:
        other = named.setdefault(set_name(path), path)
        if other is not path:
            raise UserError(f"sets {other} and {path} are both called {set_name(path)!r} in figures; rename one")


class DistractorConfig(Section):
    """A set whose mates are hidden among the pictures of strangers."""

    set: Path = Field(description="directory of shards with two or more pictures of each identity")
    strangers: Path = Field(description="directory of shards among whose pictures the mates are hidden")


class RetrievalConfig(Section):
    """A labelled set whose pictures are searched for."""

    set: Path = Field(
        description="directory of shards: probes are searched for in the gallery; without roles each picture among all "
        "others"
    )
    ignore_same: str | None = Field(
        None,
        description="field of the samples' .json: gallery entries of a probe's own label that share its value, such as "
        "the camera, are left out",
    )
    rerank: bool = Field(False, description="whether figures after k-reciprocal re-ranking are given too")


class EvaluateConfig(Section):
    """On what, and how, a model is evaluated."""

    verification: tuple[Path, ...] = Field((), description="verification sets, as InsightFace's .bin files")
    identification: tuple[Path, ...] = Field(
        (), description="identification sets: directories of shards with a gallery and probes"
    )
    ijb: tuple[Path, ...] = Field((), description="IJB-B and IJB-C: directories with meta and loose_crop")
    distractors: tuple[DistractorConfig, ...] = Field(
        (), description="searches among strangers, as MegaFace's: each a set and the strangers it is searched among"
    )
    knn: tuple[Path, ...] = Field(
        (),
        description="labelled sets: directories of shards each of whose pictures is classified by its neighbours "
        "among the others",
    )
    knn_neighbours: int = Field(20, ge=1, le=1000, description="k: how many nearest pictures vote in those sets")
    retrieval: tuple[RetrievalConfig, ...] = Field(
        (), description="sets whose pictures are searched for: R@k, mAP, mAP@R, R-precision, mINP"
    )
    every_steps: int | None = Field(
        None, ge=1, description="steps between evaluations in training; null evaluates only at the end"
    )
    batch_size: int = Field(64, ge=1, le=8192, description="pictures in one forward pass of a rank")
    flip: bool = Field(True, description="whether the mirrored picture's embedding is added, as in published figures")

    @field_validator("verification", "identification", "ijb", "knn")
    @classmethod
    def _told_apart(cls, sets: tuple[Path, ...]) -> tuple[Path, ...]:
        try:
            check_names(sets)
        except UserError as error:
            raise ValueError(str(error)) from error
        return sets

    @field_validator("retrieval")
    @classmethod
    def _searches_told_apart(cls, entries: tuple[RetrievalConfig, ...]) -> tuple[RetrievalConfig, ...]:
        cls._told_apart(tuple(each.set for each in entries))
        return entries

    @field_validator("distractors")
    @classmethod
    def _pairs_told_apart(cls, pairs: tuple[DistractorConfig, ...]) -> tuple[DistractorConfig, ...]:
        named: dict[tuple[str, str], DistractorConfig] = {}
        for pair in pairs:
            both = set_name(pair.set), set_name(pair.strangers)
            if named.setdefault(both, pair) is not pair:
                raise ValueError(f"two entries are both called '{both[0]} + {both[1]}' in figures; rename a directory")
        return pairs
