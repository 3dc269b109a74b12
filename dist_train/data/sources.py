"""Opening the sets that a configuration names, and checking them before anything large is started."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from dist_train.data.aligner import common_aligner
from dist_train.data.config import DataConfig
from dist_train.data.manifest import MANIFEST_NAME, MAX_BYTES, Manifest, load_manifest, parse_manifest
from dist_train.data.reader import ImageSet
from dist_train.data.remote import Remote, is_remote
from dist_train.data.survey import adopt_set
from dist_train.errors import UserError

_CHECKED = 256  # shards compared with the manifest at the start, spread over the set


class Sources(NamedTuple):
    """The sets of a configuration.

    Attributes:
        sets: in the order of the configuration.
        manifest: of all of them together; its classes are those of the labelled sets.
    """

    sets: tuple[ImageSet, ...]
    manifest: Manifest

    @property
    def labelled(self) -> list[ImageSet]:
        """The sets whose labels are read, in order."""
        return [each for each in self.sets if each.labelled]


def open_sources(config: DataConfig) -> Sources:
    """Read the manifests of `data.path` and `data.mix`.

    Raises:
        UserError: a set is missing, empty or disagrees with its manifest, or two were aligned by different detectors.
        WorkError: a server cannot be reached.
    """
    first = open_manifest(config.path, config.label_key, config.retries)
    sets = [ImageSet(config.path, first, 0)]
    classes = first.num_classes
    for source in config.mix:
        manifest = open_manifest(source.path, config.label_key, config.retries)
        if not source.labelled:
            sets.append(ImageSet(source.path, manifest, labelled=False))
            continue
        sets.append(ImageSet(source.path, manifest, 0 if source.shared_labels else classes))
        classes = max(classes, sets[-1].first_label + manifest.num_classes)
    if config.check_at_start:
        for each in sets:
            if not is_remote(each.path):
                check_shards(Path(each.path), each.manifest)
    if len(sets) == 1:
        return Sources(tuple(sets), first)
    aligners = {f"data set {each.path}": each.manifest.aligner for each in sets}
    aligner = common_aligner(aligners, "data.any_aligner=true", config.any_aligner)
    shards = tuple(shard for each in sets for shard in each.manifest.shards)
    return Sources(tuple(sets), Manifest(first.image_size, classes, shards, aligner=aligner))


def open_manifest(path: str, label_key: str = "label", retries: int = 5) -> Manifest:
    """The manifest of the set at a directory or address; a directory of plain tars gets one.

    Raises:
        UserError: no set there, or a bad manifest.
        WorkError: a server cannot be reached.
    """
    if is_remote(path):
        try:
            return parse_manifest(Remote(path, retries).read(MANIFEST_NAME, MAX_BYTES), f"{path}/{MANIFEST_NAME}")
        except FileNotFoundError as error:
            raise UserError(f"dataset {path}: no {MANIFEST_NAME} at this address; correct data.path") from error
    directory = Path(path)
    if directory.is_dir() and not (directory / MANIFEST_NAME).exists():
        return adopt_set(directory, label_key)
    manifest = load_manifest(directory)
    if manifest.label_key not in (None, label_key):
        raise UserError(
            f"{directory / MANIFEST_NAME} counts the classes of data.label_key={manifest.label_key}, not of "
            f"{label_key}; remove it to have the shards indexed anew, or correct data.label_key"
        )
    return manifest


def check_shards(directory: Path, manifest: Manifest) -> None:
    """Compare sizes of shards, of up to 256 spread over the set, with the manifest.

    Raises:
        UserError: a shard is missing or has another size.
    """
    count = len(manifest.shards)
    for number in np.unique(np.linspace(0, count - 1, min(_CHECKED, count)).astype(int)).tolist():
        shard = manifest.shards[number]
        if found := shard.size_fault(directory):
            raise UserError(
                f"dataset {directory}, shard {shard.name}: {found}; see `headcount data verify {directory}`, write the "
                "set again, or go on without such shards by data.check_at_start=false"
            )
