"""A backbone's first weights: those of a run, of one checkpoint, or of a file."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from dist_train.checkpoint.load import load_backbone
from dist_train.config import RunConfig
from dist_train.errors import UserError
from dist_train.runtime.ranks import Ranks
from dist_train.start.place import find_place
from dist_train.weights.files import SUFFIXES, read_weights
from dist_train.weights.fit import Fit, fit_weights

logger = logging.getLogger(__name__)


def start_backbone(config: RunConfig, backbone: nn.Module, image_size: int, ranks: Ranks) -> Path | None:
    """Give a network that was just built the weights of `start.backbone`, on every rank the same. A collective.

    Args:
        config: the recipe.
        backbone: the plain network with random weights, before a strategy or a moving average takes it.
        image_size: side of its pictures in pixels.
        ranks: this process among the job's.

    Returns:
        Where the weights were read: one checkpoint, whose files are sound, or a file; None where a recipe names none.

    Raises:
        UserError: nothing to start from there, weights that do not fit, or others on another rank.
        WorkError: a damaged checkpoint.
    """
    if config.start.backbone is None:
        return None
    network = backbone.state_dict()
    source, fit = find_start(config, network, image_size, ranks)
    digests = ranks.gather(_digest_of(fit.tensors))
    ranks.agree(lambda: _check_same(source, digests))
    backbone.load_state_dict(fit.tensors, strict=False)
    if ranks.rank == 0:
        if misfits := fit.misfits():
            logger.warning("start.backbone %s: what does not fit is left out:%s", source, misfits)
        logger.info(
            "backbone started from %s: %d of %d tensors, names of %s",
            source,
            len(fit.tensors),
            len(network),
            fit.source,
        )
    return source


def find_start(config: RunConfig, network: Mapping[str, Tensor], image_size: int, ranks: Ranks) -> tuple[Path, Fit]:
    """Where the weights that `start.backbone` names lie, and how they fit a network. A collective.

    Args:
        config: the recipe; it names something.
        network: the network's state dict, of which shapes and dtypes count.
        image_size: side of its pictures in pixels.
        ranks: this process among the job's.

    Raises:
        UserError, WorkError: as `start_backbone`.
    """
    files = f"a file that ends in {', '.join(SUFFIXES)}"
    source = find_place("start.backbone", Path(str(config.start.backbone)), config.run_dir, files, ranks)
    return source, ranks.agree(lambda: _fitted(config, source, network, image_size))


def _fitted(config: RunConfig, source: Path, network: Mapping[str, Tensor], image_size: int) -> Fit:
    """The weights of `source` in the network's shapes.

    Raises:
        UserError: not all fits, unless `start.allow_partial`; or nothing does.
    """
    try:
        fit = fit_weights(_read(source), network, config.backbone)
    except UserError as error:
        text = str(error).removeprefix(f"{source}: ")
        raise UserError(f"start.backbone {source}: {text}") from error
    what = f"backbone.name={config.backbone.name} with embedding_dim={config.backbone.embedding_dim} at {image_size} px"
    misfits = fit.misfits()
    if not any(network[name].is_floating_point() for name in fit.tensors):
        raise UserError(f"start.backbone {source}: nothing in it fits {what}; give weights of this network:{misfits}")
    if misfits and not config.start.allow_partial:
        raise UserError(
            f"start.backbone {source} (names of {fit.source}) does not fit {what}:{misfits}\n"
            f"give the recipe the network that these weights are of{_norm_hint(config, fit)}, or leave out what does "
            "not fit: start.allow_partial=true"
        )
    return fit


def _norm_hint(config: RunConfig, fit: Fit) -> str:
    """The key that a recipe lacks for weights of arcface_torch, whose networks end with a trained bias."""
    fixed = getattr(config.backbone, "embedding_norm", None) == "fixed"
    lost = any(line.startswith(("features.bias ", "embed.4.bias ")) for line in fit.unexpected)
    return " (backbone.embedding_norm=bias has a place for its last bias)" if fixed and lost else ""


def _read(source: Path) -> Mapping[str, Tensor]:
    """Tensors by name; a checkpoint's moving average where it has one."""
    if not source.is_dir():
        return read_weights(source).state
    with torch.random.fork_rng(devices=[]):  # the network that it is loaded into draws random weights first
        network = load_backbone(source)[0]
    return network.state_dict()


def _digest_of(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _check_same(source: Path, digests: Sequence[str]) -> None:
    """See that all ranks have read the same weights, given the digests of theirs [W]."""
    if other := [str(rank) for rank, digest in enumerate(digests) if digest != digests[0]]:
        raise UserError(
            f"start.backbone {source}: other weights on rank {', '.join(other)} than on rank 0; put the same file on "
            "every machine"
        )
