"""Reading checkpoints: the newest sound one of a run, and the backbone of one."""

import logging
import warnings
from pathlib import Path

from torch import nn

from dist_train.backbones import build_backbone
from dist_train.checkpoint.errors import DCP_ERRORS, last_line
from dist_train.checkpoint.metadata import read_tensors
from dist_train.checkpoint.reader import load_tensors
from dist_train.checkpoint.store import Progress, committed_checkpoints, damage, read_progress, set_aside_newer
from dist_train.config import RunConfig, load_config
from dist_train.errors import UserError, WorkError
from dist_train.run_files import CHECKPOINTS_NAME, CONFIG_NAME, METADATA_NAME
from dist_train.runtime.ranks import Ranks

logger = logging.getLogger(__name__)


def newest_sound_checkpoint(run_dir: Path, ranks: Ranks) -> Path | None:
    """The newest checkpoint whose files are as they were written; damaged ones are passed over with a warning.

    A collective: the ranks share the reading.
    """
    found = ranks.gather(committed_checkpoints(run_dir))[0]
    for checkpoint in reversed(found):
        wrong = [line for lines in ranks.gather(damage(checkpoint, ranks.rank, ranks.world_size)) for line in lines]
        if not wrong:
            return checkpoint
        if ranks.rank == 0:
            logger.warning("checkpoint %s is damaged and passed over: %s", checkpoint, "; ".join(dict.fromkeys(wrong)))
    return None


def checkpoint_to_resume(run_dir: Path, ranks: Ranks) -> Path | None:
    """The newest sound checkpoint of the run that goes on in `run_dir`; newer ones, which are damaged, are set aside.

    A collective, for the job that holds the directory; others only read, by `newest_sound_checkpoint`.

    Raises:
        UserError: a damaged one cannot be renamed.
    """
    found = newest_sound_checkpoint(run_dir, ranks)
    ranks.agree(lambda: set_aside_newer(run_dir, found) if ranks.rank == 0 else None)
    return found


def found_checkpoint(path: Path) -> Path:
    """The checkpoint that a path stands for: itself, or the newest of a run directory.

    Raises:
        UserError: no checkpoint there.
    """
    if (path / METADATA_NAME).exists():
        return path
    if found := committed_checkpoints(path):
        return found[-1]
    raise UserError(
        f"{path}: no checkpoint found; give a run directory or one like RUN/{CHECKPOINTS_NAME}/step-00001000"
    )


def has_part(checkpoint: Path, part: str) -> bool:
    """Whether a checkpoint has tensors of a part, e.g. `head`.

    Raises:
        WorkError: a damaged checkpoint.
    """
    try:
        return any(name.partition(".")[0] == part for name in read_tensors(checkpoint))
    except DCP_ERRORS as error:
        raise WorkError(f"checkpoint {checkpoint}: cannot be loaded: {last_line(error)}") from error


def load_backbone(path: Path) -> tuple[nn.Module, RunConfig, Progress]:
    """The trained backbone of a run, in evaluation mode on the CPU: its moving average where one was kept.

    Args:
        path: a run directory (its newest checkpoint is taken) or one checkpoint in it.

    Raises:
        UserError: no checkpoint there, or of another architecture than the configuration beside it.
        WorkError: a damaged checkpoint.
    """
    checkpoint = found_checkpoint(path)
    progress = read_progress(checkpoint)
    config = load_config(checkpoint.parent.parent / CONFIG_NAME)
    backbone = build_backbone(config.backbone, progress.image_size)
    section, names = backbone_names(config, backbone)
    state = {section: {names[name]: tensor for name, tensor in backbone.state_dict().items()}}
    try:
        stored = {name: list(entry.size) for name, entry in read_tensors(checkpoint).items()}
        wrong = _misfits({f"{section}.{name}": list(tensor.shape) for name, tensor in state[section].items()}, stored)
        if not wrong:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")
                load_tensors(state, checkpoint, alone=True)
    except DCP_ERRORS as error:
        raise WorkError(f"checkpoint {checkpoint}: cannot be loaded: {last_line(error)}") from error
    if wrong:
        raise UserError(
            f"checkpoint {checkpoint}: holds another architecture than {CONFIG_NAME} beside it names, "
            f"backbone.name={config.backbone.name} with embedding_dim={config.backbone.embedding_dim} at "
            f"{progress.image_size} px: {len(wrong)} tensors do not fit, the first: {wrong[0]}; bring back the "
            f"{CONFIG_NAME} that the run was trained with"
        )
    backbone.load_state_dict({name: state[section][names[name]] for name in names})
    return backbone.eval(), config, progress


def backbone_names(config: RunConfig, backbone: nn.Module) -> tuple[str, dict[str, str]]:
    """The part of a run's checkpoints that holds the backbone to use, and what that calls each of its tensors.

    It is the moving average where one is kept.
    """
    if config.train.ema_decay is None:
        return "backbone", {name: name for name in backbone.state_dict()}
    return "average", {name: f"module.{name}" for name in backbone.state_dict()}


def _misfits(expected: dict[str, list[int]], stored: dict[str, list[int]]) -> list[str]:
    """Which tensors a checkpoint does not have in the shapes that are expected."""
    return [
        f"{name} is {stored[name]}, expected {shape}" if name in stored else f"{name} is not in it"
        for name, shape in expected.items()
        if stored.get(name) != shape
    ]
