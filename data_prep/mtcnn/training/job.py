"""A whole training of a detector: three networks in turn, then one file."""

import json
import logging
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter

from data_prep.mtcnn.training.config import DetectorRecipe
from data_prep.mtcnn.training.photos import Photos, open_photos
from data_prep.mtcnn.training.stage import NAMES, Stage, Trained, networks_of
from data_prep.mtcnn.weights import RECIPE_KEY, SETS_KEY, THRESHOLDS_KEY, check_tensors, read_networks, write_networks
from dist_train.errors import UserError
from dist_train.runtime.files import read_bounded
from dist_train.runtime.lock import only_job
from dist_train.runtime.quiet import quiet_libraries
from dist_train.runtime.ranks import Ranks, join_ranks, leave_ranks
from dist_train.runtime.stop_signal import INTERRUPTED_STATUS
from dist_train.runtime.watchdog import launcher_watched
from dist_train.runtime.written import MAKE_ROOM, remove_temporaries, write_failures, write_json
from dist_train.section import first_difference
from dist_train.weights.files import read_weights
from dist_train.weights.write import write_weights

logger = logging.getLogger(__name__)

DETECTOR_NAME, STATE_NAME, LOCK_NAME = "detector.safetensors", "training.json", ".lock"
_MAY_CHANGE = frozenset({"out", "sets", "device", "threads", "workers", "checkpoint_steps", "timeout_s"})
_STATE: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])
_MOST_STATE = 1 << 20


@launcher_watched()
def train_detector(recipe: DetectorRecipe, onnx: bool = False) -> int:
    """Train a detector, or go on where its training was, on this rank.

    Args:
        recipe: what is trained.
        onnx: write the networks as ONNX files, too.

    Returns:
        Exit status: 0, or 130 when a signal ended training early, after a checkpoint.

    Raises:
        UserError: on rank 0, for a mistake that any rank found; the others leave silently.
        WorkError: likewise, where training failed.
    """
    quiet_libraries()
    ranks = join_ranks(recipe.device, recipe.threads, recipe.timeout_s)
    try:
        if ranks.rank != 0:
            return _run(recipe, ranks)
        _make(recipe.out)
        with only_job(recipe.out / LOCK_NAME, recipe.out):
            status = _run(recipe, ranks)
            if onnx and not status:
                from data_prep.mtcnn.onnx_files import export_networks  # needs an extra

                target = recipe.out / DETECTOR_NAME
                logger.info("ONNX: %s", ", ".join(map(str, export_networks(read_networks(target), target))))
            return status
    finally:
        leave_ranks(ranks)


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out {out}: cannot be made: {error.strerror}; name another: out=PATH") from error


def _run(recipe: DetectorRecipe, ranks: Ranks) -> int:
    target = recipe.out / DETECTOR_NAME
    photos = ranks.agree(
        lambda: open_photos(recipe.sets, recipe.seed, recipe.heldout, recipe.most_heldout, recipe.min_face_px)
    )
    ranks.agree(lambda: _check(recipe, ranks))
    ranks.agree(lambda: _claim(recipe, photos) if ranks.rank == 0 else None)
    if ranks.any(ranks.rank == 0 and target.exists())[0]:
        if ranks.rank == 0:
            logger.info("%s is there already; for another one name another directory: out=PATH", target)
        return 0
    if ranks.rank == 0:
        for each in photos.lists:
            each.tell()
    trained: dict[str, Trained] = {}
    for name in NAMES:
        directory = recipe.out / name
        stage = Stage(name, directory, recipe, photos, trained, ranks)
        if not ranks.any(ranks.rank == 0 and _file(directory).exists())[0]:
            made = stage.run()
            if made is None:
                return INTERRUPTED_STATUS
            ranks.agree(lambda: _write(_file(directory), made) if ranks.rank == 0 else None)  # noqa: B023 - at once
        if ranks.rank == 0:
            stage.clean()
        trained[name] = ranks.agree(lambda: _read(_file(directory), name))  # noqa: B023 - at once
    ranks.agree(lambda: _finish(recipe, photos, trained) if ranks.rank == 0 else None)
    return 0


def _check(recipe: DetectorRecipe, ranks: Ranks) -> None:
    for name, section in recipe.networks().items():
        if section.batch % ranks.world_size:
            raise UserError(
                f"{name}.batch {section.batch} is not a multiple of the {ranks.world_size} ranks; change it"
            )


def _claim(recipe: DetectorRecipe, photos: Photos) -> None:
    """Note what is trained, or see that the directory is that of the same training."""
    path = recipe.out / STATE_NAME
    for directory in (recipe.out, *(recipe.out / name for name in NAMES)):
        remove_temporaries(directory)
    new = {"recipe": recipe.model_dump(mode="json", exclude=set(_MAY_CHANGE)), "sets": photos.digests}
    if path.exists():
        try:
            old = _STATE.validate_json(read_bounded(path, _MOST_STATE))
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read; remove {recipe.out}, or name another: out=PATH") from error
        if found := first_difference(old, json.loads(json.dumps(new)), cut_digests=True):
            raise UserError(
                f"out {recipe.out} holds another training: {found}; give its own recipe, or name another: out=PATH"
            )
        return
    with write_failures(str(path), MAKE_ROOM):
        write_json(path, new)


def _file(directory: Path) -> Path:
    """The file of a network that is done."""
    return directory / "network.safetensors"


def _write(path: Path, trained: Trained) -> None:
    write_weights(path, trained.network.state_dict(), {THRESHOLDS_KEY: repr(trained.threshold)})


def _read(path: Path, name: str) -> Trained:
    found = read_weights(path)
    network = networks_of({}).by_name()[name]
    check_tensors(path, found.state, network.state_dict())
    network.load_state_dict({key: tensor.clone() for key, tensor in found.state.items()})
    try:
        threshold = float(found.about[THRESHOLDS_KEY])
    except (KeyError, ValueError):
        raise UserError(f"{path}: does not say its threshold; remove it, and the network is trained again") from None
    return Trained(network, threshold)


def _finish(recipe: DetectorRecipe, photos: Photos, trained: dict[str, Trained]) -> None:
    """Write the detector."""
    target = recipe.out / DETECTOR_NAME
    about = {
        RECIPE_KEY: yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False),
        SETS_KEY: " ".join(photos.digests),
    }
    networks = networks_of(trained)
    write_networks(target, networks, about)
    logger.info("%s: thresholds %s", target, ", ".join(f"{each:.3f}" for each in networks.thresholds))
