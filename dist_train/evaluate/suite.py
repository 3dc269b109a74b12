"""A backbone judged on every set that a configuration names, the work split over ranks."""

from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from dist_train.backbones import memory_format
from dist_train.data.manifest import load_manifest
from dist_train.errors import UserError
from dist_train.evaluate.bin import read_bin
from dist_train.evaluate.config import EvaluateConfig
from dist_train.evaluate.identification import IdentificationResult, evaluate_identification
from dist_train.evaluate.verification import VerificationResult, evaluate_verification
from dist_train.runtime.ranks import Ranks


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Results on all sets, equal on every rank."""

    verification: list[VerificationResult]
    identification: list[IdentificationResult]

    @property
    def score(self) -> float:
        """One number to choose a checkpoint by: mean verification accuracy, or mean rank-1 without such sets; 0..1.

        Sets with one kind of pairs have no accuracy, and no say.
        """
        values = [result.accuracy for result in self.verification if result.accuracy is not None]
        values = values or [result.rank1 for result in self.identification]
        return float(sum(values) / len(values)) if values else 0.0

    def figures(self) -> dict[str, float]:
        """The results under the names that trackers use."""
        if not (self.verification or self.identification):
            return {}
        figures = {"evaluate/score": self.score}
        for one in self.verification:
            if one.accuracy is not None:
                figures[f"evaluate/{one.name}/accuracy"] = one.accuracy
            figures |= {f"evaluate/{one.name}/tar_at_far_{far:g}": tar.tar for far, tar in one.tar_at_far.items()}
        for other in self.identification:
            figures[f"evaluate/{other.name}/rank1"] = other.rank1
        return figures


def check_sets(config: EvaluateConfig) -> None:
    """Look whether the sets of `config` are there, before hours of training end in their absence.

    Raises:
        UserError: one is not.
    """
    for path in config.verification:
        if not path.is_file():
            raise UserError(
                f"evaluate.verification: {path}: no such file; correct the path, or remove it from the list"
            )
    for path in config.identification:
        load_manifest(path)


def evaluate_backbone(backbone: nn.Module, config: EvaluateConfig, image_size: int, ranks: Ranks) -> Evaluation:
    """Judge `backbone`, which is in evaluation mode, on the sets of `config`. A collective.

    Raises:
        UserError | WorkError: a set that is missing, damaged or cannot be judged; the same on every rank.
    """
    layout = memory_format(backbone)

    def embed(images: Tensor) -> Tensor:
        embeddings: Tensor = backbone(images.to(ranks.device, memory_format=layout))
        return embeddings

    # Results are compared on the host, where flags and messages go too.
    shared = (image_size, config.batch_size, ranks)
    pairs = (ranks.agree(partial(read_bin, path), "all") for path in config.verification)
    return Evaluation(
        [evaluate_verification(embed, each, *shared, flip=config.flip) for each in pairs],
        [evaluate_identification(embed, path, *shared, flip=config.flip) for path in config.identification],
    )
