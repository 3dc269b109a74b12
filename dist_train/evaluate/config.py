"""The `evaluate` section of a configuration."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field, field_validator, model_validator

from dist_train.errors import UserError
from dist_train.section import Section

Entry = TypeVar("Entry", bound=Section)
Templates = Literal["sum", "norm", "score"]


def set_name(path: Path) -> str:
    """What a set is called in figures and tables: the name of its file without `.bin`, or of its directory."""
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


class AllPairsConfig(Section):
    """A labelled set whose pairs are judged at operating points; a path alone stands for its set."""

    set: Path = Field(description="directory of labelled shards; roles are not looked at")
    pairs: Path | None = Field(
        None, description="list of the pairs that count, LFW's or a .csv, .tsv or .parquet; null takes all pairs"
    )

    @model_validator(mode="before")
    @classmethod
    def _of_a_path(cls, value: object) -> object:
        return {"set": value} if isinstance(value, str | Path) else value


def all_pairs_name(entry: AllPairsConfig) -> str:
    """What pairs of a set are called in figures."""
    name = set_name(entry.set)
    return name if entry.pairs is None else f"{name} by {entry.pairs.name}"


class GroupsConfig(Section):
    """A labelled set whose groups of pictures are compared at one threshold."""

    set: Path = Field(description="directory of labelled shards")
    by: str = Field(
        min_length=1, description="column of its identities.parquet, or field of its samples' .json, that names groups"
    )
    fmr: float = Field(1e-3, gt=0, le=0.1, description="false match rate over all impostor pairs, at the threshold")


class QualityConfig(Section):
    """A labelled set whose pictures are discarded by a quality, the lowest first."""

    set: Path = Field(description="directory of labelled shards")
    by: str = Field(
        min_length=1,
        description="norm: length of the network's output; score: the detector's in the samples' .json; or a .csv or "
        ".parquet with the columns key and quality",
    )
    fmr: float = Field(1e-3, gt=0, le=0.1, description="false match rate over all impostor pairs, at the threshold")


def quality_name(entry: QualityConfig) -> str:
    """What a quality of a set is called in figures: a table by the name of its file."""
    return f"{set_name(entry.set)} by {Path(entry.by).name} at {entry.fmr:g}"


def groups_name(entry: GroupsConfig) -> str:
    """What the groups of a set are called in figures."""
    return f"{set_name(entry.set)} by {entry.by} at {entry.fmr:g}"


class RetrievalConfig(Section):
    """A labelled set whose pictures are searched for; a path alone stands for its set."""

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

    @model_validator(mode="before")
    @classmethod
    def _of_a_path(cls, value: object) -> object:
        return {"set": value} if isinstance(value, str | Path) else value


class EvaluateConfig(Section):
    """On what, and how, a model is evaluated."""

    verification: tuple[Path, ...] = Field((), description="verification sets, as InsightFace's .bin files")
    identification: tuple[Path, ...] = Field(
        (), description="identification sets: directories of shards with a gallery and probes"
    )
    ijb: tuple[Path, ...] = Field((), description="IJB-B and IJB-C: directories with meta and loose_crop")
    templates: Templates = Field(
        "score",
        description="how much a picture weighs in its IJB template: all the same (sum), by the length of its embedding "
        "(norm), or by that and the detector's score (score), as in published figures",
    )
    distractors: tuple[DistractorConfig, ...] = Field(
        (), description="searches among strangers, as MegaFace's: each a set and the strangers it is searched among"
    )
    knn: tuple[Path, ...] = Field(
        (),
        description="labelled sets: directories of shards each of whose pictures is classified by its neighbours "
        "among the others",
    )
    knn_neighbours: int = Field(20, ge=1, le=1000, description="k: how many nearest pictures vote in those sets")
    all_pairs: tuple[AllPairsConfig, ...] = Field(
        (),
        description="labelled sets: directories of shards, all pairs of whose pictures, or those of a list, give "
        "thresholds at demanded false match rates",
    )
    groups: tuple[GroupsConfig, ...] = Field(
        (), description="comparisons of groups: each a labelled set and the column that its groups are of"
    )
    quality: tuple[QualityConfig, ...] = Field(
        (), description="curves of error against discarded pairs: each a labelled set and a quality of its pictures"
    )
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

    @field_validator("all_pairs")
    @classmethod
    def _entries_told_apart(cls, entries: tuple[AllPairsConfig, ...]) -> tuple[AllPairsConfig, ...]:
        return _names_told_apart(entries, all_pairs_name)

    @field_validator("groups")
    @classmethod
    def _groups_told_apart(cls, entries: tuple[GroupsConfig, ...]) -> tuple[GroupsConfig, ...]:
        return _names_told_apart(entries, groups_name)

    @field_validator("quality")
    @classmethod
    def _qualities_told_apart(cls, entries: tuple[QualityConfig, ...]) -> tuple[QualityConfig, ...]:
        return _names_told_apart(entries, quality_name)


def _names_told_apart(entries: tuple[Entry, ...], name: Callable[[Entry], str]) -> tuple[Entry, ...]:
    """The entries, if each has a name of its own in figures."""
    named: dict[str, Entry] = {}
    for entry in entries:
        if named.setdefault(name(entry), entry) is not entry:
            raise ValueError(
                f"two entries are both called {name(entry)!r} in figures; rename a directory or file, or leave one"
            )
    return entries
