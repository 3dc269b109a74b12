"""The mean of several checkpoints' backbones, with BatchNorm statistics made anew.

Wortsman et al., Model soups (ICML 2022); Izmailov et al., Averaging Weights Leads to Wider Optima (UAI 2018), whose
section 3.2 says why the statistics of the parents are not those of the mean.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from dist_train.backbones import build_backbone, memory_format
from dist_train.checkpoint.load import load_backbone
from dist_train.data.config import AugmentConfig, DataConfig
from dist_train.data.loader import build_loader
from dist_train.data.manifest import Manifest
from dist_train.data.sources import open_manifest
from dist_train.errors import UserError
from dist_train.runtime.progress import progress_bar
from dist_train.weights.card import Parent

BATCH_SIZE = 128
"""Pictures whose mean and variance are taken together; fewer where the set has fewer."""


@dataclass(frozen=True)
class Mean:
    """Several backbones' mean.

    Attributes:
        backbone: on the CPU, in evaluation mode, without dropout.
        parents: the checkpoints, in the order of their directories, whatever order they were given in.
    """

    backbone: nn.Module
    parents: tuple[Parent, ...]

    @property
    def has_statistics(self) -> bool:
        """Whether there are BatchNorm statistics, which a mean of the parents' would not fit."""
        return any(isinstance(each, _BatchNorm) and each.track_running_stats for each in self.backbone.modules())


@dataclass(frozen=True)
class Pictures:
    """The batches that statistics are taken of.

    Attributes:
        path: directory or address of the set.
        manifest: of the set.
        config: the `data` section that they are read by, without augmentation.
        batch_size: pictures in a batch.
        batches: how many there are.
        seed: of their order.
        device: `train.device` of the recipe; a CPU takes the place of a GPU that is not here.
    """

    path: str
    manifest: Manifest
    config: DataConfig
    batch_size: int
    batches: int
    seed: int
    device: str


def average_backbones(checkpoints: Sequence[Path]) -> Mean:
    """Load backbones and take the mean of each number, in float64.

    Raises:
        UserError: fewer than two, one twice, other networks or picture sizes, or numbers that are not finite.
        WorkError: a damaged checkpoint.
    """
    places = sorted({path.resolve() for path in checkpoints})
    if len(places) < len(checkpoints):
        raise UserError(
            "average: the same checkpoint is given twice; a run stands for its newest one: name others as "
            "RUN/checkpoints/step-00001000"
        )
    if len(places) < 2:
        raise UserError(
            f"average: {len(places)} checkpoint; a mean takes two or more. One alone: headcount checkpoint export"
        )
    sums: dict[str, Tensor] = {}
    parents: list[Parent] = []
    for place in places:
        backbone, config, progress = load_backbone(place)
        parents.append(Parent.of(place, config, progress))
        _check_same_network(places[0], parents[0], place, parents[-1])
        for name, tensor in backbone.state_dict().items():
            if not tensor.isfinite().all():
                raise UserError(f"average: {place}: {name} is not finite: training diverged there; leave it out")
            sums[name] = sums.get(name, 0) + tensor.double()
    first = parents[0]
    # Dropout changes the variance that the last BatchNorm sees, and is off when the network is used.
    section = first.config.backbone.model_copy(update={"dropout": 0.0})
    mean = build_backbone(section, first.progress.image_size)
    # Each tensor is cast to its own type; the counts of batches are made anew with the statistics.
    mean.load_state_dict({name: total / len(places) for name, total in sums.items()})
    return Mean(mean.eval(), tuple(parents))


def _check_same_network(first_place: Path, first: Parent, place: Path, other: Parent) -> None:
    one, two = (each.config.backbone.model_dump(exclude={"dropout"}) for each in (first, other))
    one["pixels"], two["pixels"] = (each.progress.image_size for each in (first, other))
    for key in sorted(one | two):
        if one.get(key) != two.get(key):
            name = "pictures in pixels" if key == "pixels" else f"backbone.{key}"
            raise UserError(
                f"average: {name} is {one.get(key)} in {first_place}, {two.get(key)} in {place}; only weights of one "
                "network have a mean"
            )


def choose_pictures(path: str, batches: int, first: Parent) -> Pictures:
    """Which pictures of a set the statistics are taken of: the first batches of a run's sample order, unchanged.

    Args:
        path: directory or address of the set.
        batches: how many at most; a smaller set is gone through once.
        first: the parent whose recipe says how pictures are read.

    Raises:
        UserError: no set there, pictures of another size, or too few of them.
    """
    recipe = first.config.data
    config = recipe.model_copy(
        update={
            "path": path,
            "mix": (),
            "images_per_class": None,
            "last_batch": "drop",
            "augment": AugmentConfig(flip=0.0),
            "backend": "auto",  # the run may have been trained on another kind of machine
        }
    )
    manifest = open_manifest(config.path, config.label_key, config.retries)
    side, expected = config.image_size or manifest.image_size, first.progress.image_size
    if side != expected:
        raise UserError(
            f"--set {path}: pictures of {side} px, the network was trained on {expected} px; give a set of such"
        )
    batch_size = min(BATCH_SIZE, manifest.samples)
    if batch_size < 2:
        raise UserError(f"--set {path}: {manifest.samples} picture; a variance takes two or more")
    count = min(batches, manifest.samples // batch_size)
    return Pictures(path, manifest, config, batch_size, count, first.config.seed, first.config.train.device)


def renew_statistics(backbone: nn.Module, pictures: Pictures) -> None:
    """Make BatchNorm statistics those of a network's pictures, in place: the mean over the batches.

    Raises:
        UserError: shards that are not those of the manifest.
        WorkError: too many pictures that cannot be read.
    """
    device = torch.device("cuda" if pictures.device != "cpu" and torch.cuda.is_available() else "cpu")
    backbone.to(device).to(memory_format=memory_format(backbone))
    with build_loader(
        pictures.config,
        batch_size=pictures.batch_size,
        rank=0,
        world_size=1,
        seed=pictures.seed,
        device=device,
    ) as loader:

        def images() -> Iterator[Tensor]:
            for batch in itertools.islice(loader, pictures.batches):
                yield batch.images

        # `update_bn` takes the mean over batches where a momentum would weigh the last ones most.
        update_bn(progress_bar(images(), desc="statistics", total=pictures.batches, unit=" batches"), backbone)
    backbone.to("cpu").eval()
