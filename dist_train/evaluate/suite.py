"""A model judged on every set that a configuration names, the work split over ranks."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from dist_train.backbones import memory_format
from dist_train.data.aligner import Aligner, warn_of_aligner
from dist_train.data.manifest import MANIFEST_NAME, load_manifest
from dist_train.errors import UserError
from dist_train.evaluate.all_pairs import AllPairsResult
from dist_train.evaluate.config import EvaluateConfig, set_name
from dist_train.evaluate.distractors import DistractorResult
from dist_train.evaluate.group_results import GroupsResult
from dist_train.evaluate.identification import IdentificationResult
from dist_train.evaluate.ijb import IjbResult
from dist_train.evaluate.ijb_layout import ijb_kind
from dist_train.evaluate.judging import Judging
from dist_train.evaluate.kinds import KINDS
from dist_train.evaluate.knn import KnnResult
from dist_train.evaluate.quality import QualityResult
from dist_train.evaluate.retrieval_set import RetrievalResult
from dist_train.evaluate.tables import ModelScores
from dist_train.evaluate.verification import VerificationResult
from dist_train.runtime.ranks import Ranks


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Results on all sets, a list for each kind, equal on every rank."""

    verification: list[VerificationResult] = field(default_factory=list)
    identification: list[IdentificationResult] = field(default_factory=list)
    ijb: list[IjbResult] = field(default_factory=list)
    distractors: list[DistractorResult] = field(default_factory=list)
    knn: list[KnnResult] = field(default_factory=list)
    all_pairs: list[AllPairsResult] = field(default_factory=list)
    groups: list[GroupsResult] = field(default_factory=list)
    quality: list[QualityResult] = field(default_factory=list)
    retrieval: list[RetrievalResult] = field(default_factory=list)

    @property
    def score(self) -> float:
        """One number to choose a checkpoint by, 0..1: the mean over the sets of the first kind that has a say.

        The kinds in order, and their numbers: accuracy of verification, TAR at FAR 1e-4 on IJB, rank-1 of
        identification, rank-1 among all distractors, accuracy by neighbours, 1 - FNMR at the lowest FMR that all pairs
        carry, mAP of retrieval. Sets with one kind of pairs have no accuracy, and no say.
        """
        for kind in KINDS:
            values = [value for each in getattr(self, kind.name) if (value := kind.score(each)) is not None]
            if values:
                return float(sum(values) / len(values))
        return 0.0

    def figures(self) -> dict[str, float]:
        """The results under the names that trackers use; empty where no set was judged."""
        results = [(kind, result) for kind in KINDS for result in getattr(self, kind.name)]
        if not results:
            return {}
        figures = {"evaluate/score": self.score}
        for kind, result in results:
            figures |= {f"evaluate/{name}": value for name, value in kind.figures(result).items()}
        return figures

    def named(self, name: str) -> ModelScores:
        """The results as those of a model called `name`, for tables and reports."""
        return ModelScores(name, **{kind.name: getattr(self, kind.name) for kind in KINDS})


def check_sets(config: EvaluateConfig) -> None:
    """Look whether the sets of `config` are there, before hours of training end in their absence.

    Raises:
        UserError: one is not, or figures of two could not be told apart.
    """
    for kind in KINDS:
        for entry in getattr(config, kind.name):
            kind.check(entry)
    # An IJB set is called by its kind in figures, whatever its directory is called.
    named: dict[str | None, Path] = {set_name(path): path for path in config.verification}
    for path in config.ijb:
        other = named.setdefault(called := ijb_kind(path), path)
        if other is not path:
            raise UserError(f"evaluate.ijb: {other} and {path} are both called {called!r} in figures; name one of them")


def absent_sets(config: EvaluateConfig) -> Iterator[tuple[str, Path]]:
    """The key in a recipe and the path of every set that is not there."""
    for kind in KINDS:
        for entry in getattr(config, kind.name):
            yield from ((f"evaluate.{kind.name}", path) for path in kind.paths(entry) if not path.exists())


def present_sets(config: EvaluateConfig) -> EvaluateConfig:
    """The configuration without the entries of which something is not there."""
    there = {
        kind.name: tuple(each for each in getattr(config, kind.name) if all(p.exists() for p in kind.paths(each)))
        for kind in KINDS
    }
    return config.model_copy(update=there)


def evaluate_backbone(
    backbone: nn.Module, config: EvaluateConfig, image_size: int, ranks: Ranks, aligner: Aligner | None = None
) -> Evaluation:
    """Judge `backbone`, which is in evaluation mode, on the sets of `config`. A collective.

    Args:
        backbone: the network.
        config: names the sets.
        image_size: side of the network's pictures in pixels.
        ranks: this process among the job's.
        aligner: what placed the faces that it was trained on; sets that another one aligned are warned of.

    Raises:
        UserError | WorkError: as `evaluate_sets`.
    """
    layout = memory_format(backbone)

    def embed(images: Tensor) -> Tensor:
        embeddings: Tensor = backbone(images.to(ranks.device, memory_format=layout))
        return embeddings

    shared = (image_size, config.batch_size, ranks, config.flip, config.knn_neighbours, config.templates)
    how = Judging(embed, *shared, kept={}, aligner=aligner)  # a set that several kinds judge is embedded once
    return evaluate_sets(config, how)


def evaluate_sets(config: EvaluateConfig, how: Judging) -> Evaluation:
    """Judge a model on the sets of `config`, kind by kind. A collective.

    Raises:
        UserError | WorkError: a set that is missing, damaged or cannot be judged; the same on every rank.
    """
    if how.aligner is not None and how.ranks.rank == 0:
        _warn_of_aligners(config, how.aligner)
    return Evaluation(**{kind.name: [kind.judge(each, how) for each in getattr(config, kind.name)] for kind in KINDS})


def _warn_of_aligners(config: EvaluateConfig, trained: Aligner) -> None:
    paths = [path for kind in KINDS for entry in getattr(config, kind.name) for path in kind.paths(entry)]
    for path in dict.fromkeys(paths):
        if (path / MANIFEST_NAME).is_file():
            warn_of_aligner(trained, str(path), load_manifest(path).aligner)
