"""The training of one network: its crops, its steps, its threshold, its file."""

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from data_prep.faces.listed import OUTSIDE, said
from data_prep.mtcnn.cascade import Detector
from data_prep.mtcnn.faces import Picture
from data_prep.mtcnn.networks import ONet, PNet, RNet
from data_prep.mtcnn.training.choice import Known, wanted
from data_prep.mtcnn.training.config import DetectorRecipe
from data_prep.mtcnn.training.crops import Crops
from data_prep.mtcnn.training.frames import Floats, regions_of
from data_prep.mtcnn.training.losses import Tasks
from data_prep.mtcnn.training.photos import GROUP, Photos
from data_prep.mtcnn.training.program import CascadeProgram, build_cascade
from data_prep.mtcnn.training.run_config import cascade_config
from data_prep.mtcnn.training.targets import TargetTable
from data_prep.mtcnn.training.thresholds import (
    LOWEST,
    Judged,
    judge_candidates,
    judge_faces,
    threshold_by_false_alarms,
    threshold_by_recall,
)
from data_prep.mtcnn.training.trainee import Trainee
from data_prep.mtcnn.weights import Networks
from dist_train.checkpoint.load import newest_sound_checkpoint
from dist_train.checkpoint.store import remove_leftovers
from dist_train.data.reject import Reject
from dist_train.runtime.ranks import Ranks
from dist_train.runtime.stop_signal import StopSignal
from dist_train.train.build import Setting, open_training

logger = logging.getLogger(__name__)

NAMES = ("pnet", "rnet", "onet")
CROPS_NAME, RUN_NAME = "crops", "run"


class Trained(NamedTuple):
    """A network that is done.

    Attributes:
        network: on the CPU.
        threshold: lowest score that it is to accept.
    """

    network: nn.Module
    threshold: float


def networks_of(trained: Mapping[str, Trained]) -> Networks:
    """A cascade of the networks that are done and of untrained ones, on the CPU."""
    chosen = [trained[name].threshold if name in trained else LOWEST for name in NAMES]
    networks = Networks(PNet(), RNet(), ONet(), (chosen[0], chosen[1], chosen[2]))
    for name, network in networks.by_name().items():
        if name in trained:
            network.load_state_dict(trained[name].network.state_dict())
    return networks


class Stage:
    """The training of the network that comes after those which are done.

    Args:
        name: of the network.
        directory: that it writes to.
        recipe: of the whole training.
        photos: to learn from.
        before: the networks that come before it.
        ranks: this process among the job's.
    """

    def __init__(
        self,
        name: str,
        directory: Path,
        recipe: DetectorRecipe,
        photos: Photos,
        before: Mapping[str, Trained],
        ranks: Ranks,
    ) -> None:
        self.name, self.directory, self._recipe, self._photos = name, directory, recipe, photos
        self._before, self._ranks = before, ranks
        self._section = recipe.networks()[name]
        self._threads = torch.get_num_threads()

    def run(self) -> Trained | None:
        """Train the network, or go on where its training was; None where a signal asked to stop. A collective.

        Raises:
            UserError | WorkError: on rank 0, where it cannot go on.
        """
        with StopSignal() as stop:
            if not self._make_crops(lambda: stop.asked):
                return None
        trained = self._train()
        if trained is None:
            return None
        with StopSignal() as stop:
            return self._with_threshold(trained, lambda: stop.asked)

    def clean(self) -> None:
        """Remove what only this training needed."""
        for name in (CROPS_NAME, RUN_NAME):
            shutil.rmtree(self.directory / name, ignore_errors=True)

    def _make_crops(self, stopped: Callable[[], bool]) -> bool:
        recipe = self._recipe
        crops = Crops(
            self.directory / CROPS_NAME,
            self.name,
            self._photos,
            seed=recipe.seed,
            crops=self._section.crops,
            min_face_px=recipe.min_face_px,
            propose=self._proposals(),
        )
        made = crops.make(self._ranks, stopped, self._threads)
        if made and self.name == NAMES[0]:  # which opens all photos, but for those of parts that were there already
            outside = sum(sum(each.values()) for each in self._ranks.gather(self._photos.outside))
            if outside and self._ranks.rank == 0:
                logger.info("odd faces: %s", said({OUTSIDE: outside}))
        return made

    def _proposals(self) -> Callable[[Sequence[Picture]], list[Floats]] | None:
        """What the networks before find in pictures; None where there are none."""
        if self.name == "pnet":
            return None
        detector = self._detector(self._before)

        def propose(pictures: Sequence[Picture]) -> list[Floats]:
            found = detector.candidates(pictures, "pnet" if self.name == "rnet" else "rnet")
            return [regions_of(each.boxes) for each in found]

        return propose

    def _detector(self, trained: Mapping[str, Trained]) -> Detector:
        networks = networks_of(trained)
        return Detector(self._ranks.device, self._recipe.min_face_px, weights=networks, precision=torch.float32)

    def _train(self) -> Trainee | None:
        """The trained network; None where a signal asked to stop."""
        section, run_dir = self._section, self.directory / RUN_NAME
        crops = self.directory / CROPS_NAME
        config = cascade_config(self._recipe, section, crops, run_dir)
        tasks = Tasks(section.box_weight, section.points_weight, self._recipe.hard_mining)
        table = self._ranks.agree(lambda: TargetTable(crops, wanted(section.crops)))
        if self._ranks.rank == 0:
            run_dir.mkdir(parents=True, exist_ok=True)
            remove_leftovers(run_dir)
        checkpoint = newest_sound_checkpoint(run_dir, self._ranks)

        def build(setting: Setting) -> CascadeProgram:
            return build_cascade(setting, self.name, table, tasks)

        with closing(open_training(config, self._ranks, checkpoint, build_program=build)) as loop:
            done = loop.fit()
            if done and loop.lost and self._ranks.rank == 0:
                logger.warning("%s: %s", self.name, "; ".join(loop.lost))
            if not done:
                if self._ranks.rank == 0:
                    logger.warning(
                        "stopped in %s at step %d of %d, checkpoint written; go on with the same command",
                        self.name,
                        loop.step,
                        loop.total_steps,
                    )
                return None
            trainee = Trainee(self.name)
            trainee.load_state_dict(loop.program.evaluated().state_dict())
            return trainee

    def _with_threshold(self, trainee: Trainee, stopped: Callable[[], bool]) -> Trained | None:
        """The network with the threshold that suits the held-out photos; None where a signal asked to stop."""
        recipe, ranks = self._recipe, self._ranks
        detector = self._detector({**self._before, self.name: Trained(trainee.network, LOWEST)})
        mine = self._photos.heldout[ranks.rank :: ranks.world_size]
        judged: list[Judged] = [Judged(np.empty(0), np.empty(0), 0)]
        with ThreadPoolExecutor(self._threads) as pool:
            opened = self._photos.opened(mine, pool)
            group: list[tuple[Picture, Known]] = []
            for place, (_, found) in enumerate(opened, start=1):
                if stopped():
                    break
                if not isinstance(found, Reject):
                    group.append((found[0], Known.of(found[1], recipe.min_face_px)))
                if place % GROUP == 0 or place == len(mine):
                    judged += self._judge(detector, group)
                    group = []
        if ranks.any(stopped())[0]:
            return None
        every = Judged.together(ranks.gather(Judged.together(judged)))
        if self.name == "onet":
            threshold = threshold_by_false_alarms(every, recipe.false_alarms)
        else:
            threshold = threshold_by_recall(every, recipe.recall)
        if ranks.rank == 0:
            if not (every.found > 0).any():
                logger.warning(
                    "%s finds none of the %d faces of %d held-out photos; train longer, or with a lower learning rate",
                    self.name,
                    len(every.found),
                    every.photos,
                )
            logger.info(
                "%s: threshold %.3f: recall %.2f %% of %d held-out faces (%.2f %% at any score), %.3g false alarms per "
                "photo",
                self.name,
                threshold,
                100 * every.recall(threshold),
                len(every.found),
                100 * every.recall(LOWEST),
                every.false_alarms_per_photo(threshold),
            )
        return Trained(trainee.network, threshold)

    def _judge(self, detector: Detector, group: Sequence[tuple[Picture, Known]]) -> list[Judged]:
        pictures = [picture for picture, _ in group]
        if self.name == "onet":
            faces = detector.detect(pictures)
            return [
                judge_faces(each.boxes.astype(np.float64), each.scores, known)
                for each, (_, known) in zip(faces, group, strict=True)
            ]
        found = detector.candidates(pictures, self.name)  # type: ignore[arg-type]
        return [
            judge_candidates(regions_of(each.boxes), each.scores, known)
            for each, (_, known) in zip(found, group, strict=True)
        ]
