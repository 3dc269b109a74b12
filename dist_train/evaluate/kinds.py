"""The kinds of evaluation sets: one row each says how its sets are looked for, judged and shown.

A row's name is its key in a recipe's `evaluate` section and its field in `Evaluation` and `ModelScores`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dist_train.data.manifest import load_manifest
from dist_train.errors import UserError
from dist_train.evaluate import all_pairs_report, groups_report, quality_report, sections, tables
from dist_train.evaluate.all_pairs import AllPairsResult, all_pairs_paths, check_all_pairs, evaluate_all_pairs
from dist_train.evaluate.bin import read_bin
from dist_train.evaluate.config import DistractorConfig, GroupsConfig, RetrievalConfig
from dist_train.evaluate.distractors import DistractorResult, evaluate_distractors
from dist_train.evaluate.embedded_set import embed_set
from dist_train.evaluate.group_results import GroupsResult
from dist_train.evaluate.groups import evaluate_groups
from dist_train.evaluate.identification import IdentificationResult, evaluate_identification
from dist_train.evaluate.ijb import IjbResult, evaluate_ijb
from dist_train.evaluate.ijb_layout import check_layout
from dist_train.evaluate.judging import Judging
from dist_train.evaluate.knn import KnnResult, evaluate_knn
from dist_train.evaluate.quality_set import check_quality, evaluate_quality, quality_paths
from dist_train.evaluate.retrieval_report import retrieval_sections, retrieval_table
from dist_train.evaluate.retrieval_set import RetrievalResult, evaluate_retrieval
from dist_train.evaluate.sections import Section
from dist_train.evaluate.tables import ModelScores, Table
from dist_train.evaluate.verification import VerificationResult, evaluate_verification

SCORED_FAR = 1e-4  # at which IJB's TAR stands for a model in one number


class Kind(NamedTuple):
    """A kind of evaluation sets. An entry is a value of its list in a recipe; a result is what judging one gives.

    Attributes:
        name: key in a recipe and field of results.
        paths: the files and directories that an entry names.
        check: raises `UserError` where an entry's set is not there; cheap enough for every start of a training.
        judge: an entry's result, the same on every rank; a collective.
        figures: a result's figures by the names that trackers use after `evaluate/`.
        score: a result in one number, 0 .. 1; None where it has no say.
        table: all models' results as a table; None without any.
        sections: all models' results in a report.
    """

    name: str
    paths: Callable[[Any], tuple[Path, ...]]
    check: Callable[[Any], None]
    judge: Callable[[Any, Judging], Any]
    figures: Callable[[Any], dict[str, float]]
    score: Callable[[Any], float | None]
    table: Callable[[Sequence[ModelScores]], Table | None]
    sections: Callable[[Sequence[ModelScores]], list[Section]]


def result_tables(models: Sequence[ModelScores]) -> list[Table]:
    """Every table that has rows."""
    made = [kind.table(models) for kind in KINDS]
    return [table for table in made if table is not None]


def result_sections(models: Sequence[ModelScores]) -> list[Section]:
    """All sections about results, in order; the pairs that went wrong come last."""
    made = [section for kind in KINDS for section in kind.sections(models)]
    return [*made, *sections.hard_sections(models)]


def _one(path: Path) -> tuple[Path, ...]:
    return (path,)


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"evaluate.verification: {path}: no such file; correct the path, or remove it from the list")


def _judge_pairs(path: Path, how: Judging) -> VerificationResult:
    pairs = how.ranks.agree(lambda: read_bin(path), "all")
    return evaluate_verification(how.embed, pairs, how.image_size, how.batch_size, how.ranks, flip=how.flip)


def _pair_figures(result: VerificationResult) -> dict[str, float]:
    figures = {} if result.accuracy is None else {f"{result.name}/accuracy": result.accuracy}
    return figures | {f"{result.name}/tar_at_far_{far:g}": tar.tar for far, tar in result.tar_at_far.items()}


def _check_shards(path: Path) -> None:
    load_manifest(path)


def _judge_shards(path: Path, how: Judging) -> IdentificationResult:
    return evaluate_identification(how.embed, path, how.image_size, how.batch_size, how.ranks, flip=how.flip)


def _judge_ijb(path: Path, how: Judging) -> IjbResult:
    shared = (how.image_size, how.batch_size, how.ranks)
    return evaluate_ijb(how.embed, path, *shared, flip=how.flip, templates=how.templates)


def _ijb_figures(result: IjbResult) -> dict[str, float]:
    figures = {f"{result.name}/tar_at_far_{far:g}": tar.tar for far, tar in result.tar_at_far.items()}
    return figures | {f"{searched.name}/rank1": searched.rank1 for searched in result.identification}


def _distractor_paths(entry: DistractorConfig) -> tuple[Path, ...]:
    return entry.set, entry.strangers


def _check_distractors(entry: DistractorConfig) -> None:
    for path in _distractor_paths(entry):
        load_manifest(path)


def _judge_distractors(entry: DistractorConfig, how: Judging) -> DistractorResult:
    shared = (how.image_size, how.batch_size, how.ranks)
    return evaluate_distractors(how.embed, entry.set, entry.strangers, *shared, flip=how.flip)


def _judge_neighbours(path: Path, how: Judging) -> KnnResult:
    shared = (how.image_size, how.batch_size, how.neighbours, how.ranks)
    return evaluate_knn(how.embed, path, *shared, flip=how.flip)


def _distractor_figures(result: DistractorResult) -> dict[str, float]:
    figures = {f"{result.name}/rank1_in_{count}": share for count, share in result.rank1.items()}
    return figures | {f"{result.name}/tar_at_far_{far:g}": tar.tar for far, tar in result.tar_at_far.items()}


def _point_figures(result: AllPairsResult) -> dict[str, float]:
    return {f"{result.name}/fnmr_at_fmr_{point.fmr:g}": point.fnmr for point in result.points if point.resolved}


def _point_score(result: AllPairsResult) -> float | None:
    point = result.last_resolved()
    return None if point is None else 1 - point.fnmr


def _set_path(entry: GroupsConfig | RetrievalConfig) -> tuple[Path, ...]:
    return (entry.set,)


def _check_set(entry: GroupsConfig | RetrievalConfig) -> None:
    load_manifest(entry.set)


def _judge_groups(entry: GroupsConfig, how: Judging) -> GroupsResult:
    return evaluate_groups(embed_set(entry.set, how, [entry.by]), entry.by, entry.fmr, how.ranks)


def _group_figures(result: GroupsResult) -> dict[str, float]:
    start = f"{result.name}/by_{result.by}_at_fmr_{result.fmr:g}"
    differentials = {"fmr": result.fmr_differential.gini, "fnmr": result.fnmr_differential.gini}
    return {f"{start}/{kind}_gini": value for kind, value in differentials.items() if value is not None}


def _retrieval_figures(result: RetrievalResult) -> dict[str, float]:
    figures = {f"{result.name}/recall_at_{k}": share for k, share in result.figures.recall.items()}
    figures |= {f"{result.name}/map": result.figures.mean_ap, f"{result.name}/map_at_r": result.figures.map_at_r}
    if result.reranked is not None:
        figures[f"{result.name}/reranked_map"] = result.reranked.mean_ap
    return figures


KINDS = (
    Kind(
        "verification",
        paths=_one,
        check=_check_file,
        judge=_judge_pairs,
        figures=_pair_figures,
        score=lambda result: result.accuracy,
        table=tables.verification_table,
        sections=sections.verification_sections,
    ),
    Kind(
        "ijb",
        paths=_one,
        check=check_layout,
        judge=_judge_ijb,
        figures=_ijb_figures,
        score=lambda result: result.tar_at_far[SCORED_FAR].tar,
        table=tables.ijb_table,
        sections=sections.ijb_sections,
    ),
    Kind(
        "identification",
        paths=_one,
        check=_check_shards,
        judge=_judge_shards,
        figures=lambda result: {f"{result.name}/rank1": result.rank1},
        score=lambda result: result.rank1,
        table=tables.identification_table,
        sections=sections.identification_sections,
    ),
    Kind(
        "distractors",
        paths=_distractor_paths,
        check=_check_distractors,
        judge=_judge_distractors,
        figures=_distractor_figures,
        score=lambda result: result.rank1[result.distractors],
        table=tables.distractor_table,
        sections=sections.distractor_sections,
    ),
    Kind(
        "knn",
        paths=_one,
        check=_check_shards,
        judge=_judge_neighbours,
        figures=lambda result: {f"{result.name}/knn_accuracy": result.accuracy},
        score=lambda result: result.accuracy,
        table=tables.knn_table,
        sections=sections.knn_sections,
    ),
    Kind(
        "all_pairs",
        paths=all_pairs_paths,
        check=check_all_pairs,
        judge=evaluate_all_pairs,
        figures=_point_figures,
        score=_point_score,
        table=all_pairs_report.all_pairs_table,
        sections=all_pairs_report.all_pairs_sections,
    ),
    Kind(
        "groups",
        paths=_set_path,
        check=_check_set,
        judge=_judge_groups,
        figures=_group_figures,
        score=lambda _: None,
        table=groups_report.groups_table,
        sections=groups_report.groups_sections,
    ),
    Kind(
        "quality",
        paths=quality_paths,
        check=check_quality,
        judge=evaluate_quality,
        figures=lambda result: {f"{result.name}/pauc_by_{result.by}_at_fmr_{result.fmr:g}": result.pauc},
        score=lambda _: None,
        table=quality_report.quality_table,
        sections=quality_report.quality_sections,
    ),
    Kind(
        "retrieval",
        paths=_set_path,
        check=_check_set,
        judge=evaluate_retrieval,
        figures=_retrieval_figures,
        score=lambda result: result.figures.mean_ap,
        table=retrieval_table,
        sections=retrieval_sections,
    ),
)
