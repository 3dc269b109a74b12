"""Files of embeddings of the same pictures, joined by what names a row."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch

from dist_train.errors import UserError
from dist_train.evaluate.embedded_set import EmbeddedSet

_TOLD = 5  # pictures named in a message


def join(files: Sequence[EmbeddedSet]) -> tuple[list[EmbeddedSet], list[str]]:
    """The pictures that are in all files, in the order of the first, and what to say of the others.

    Raises:
        UserError: fewer than two files, a key twice in one, no picture in all, or labels that contradict one another.
    """
    if len(files) < 2:
        raise UserError("fusion needs two files of embeddings or more; give --fuse once for each")
    places = []
    for each in files:
        found = {key: number for number, key in enumerate(each.keys)}
        if len(found) < len(each.keys):
            twice = next(key for key, count in Counter(each.keys).items() if count > 1)
            raise UserError(f"embeddings {each.path}: {twice} is there twice; rows of several files are joined by it")
        places.append(found)
    common = [key for key in files[0].keys if all(key in found for found in places)]
    if not common:
        raise UserError(
            f"no picture is in all of {', '.join(str(each.path) for each in files)}: {files[0].keys[0]} is not in "
            f"{files[1].path}, which begins with {files[1].keys[0]}; embed the same sources"
        )
    notes = []
    every = dict.fromkeys(key for each in files for key in each.keys)
    for each, found in zip(files, places, strict=True):
        if missing := [key for key in every if key not in found]:
            named = ", ".join(missing[:_TOLD]) + (", ..." if len(missing) > _TOLD else "")
            notes.append(f"{len(missing):,} pictures are not in {each.path} and left out: {named}")
    joined = [chosen(each, [found[key] for key in common]) for each, found in zip(files, places, strict=True)]
    for other in joined[1:]:
        _check_labels(joined[0], other)
    return joined, notes


def chosen(one: EmbeddedSet, rows: Sequence[int]) -> EmbeddedSet:
    """Some pictures of a set, by number."""
    numbers = torch.tensor(rows, dtype=torch.int64)
    return replace(
        one,
        features=one.features[numbers],
        norms=one.norms[numbers],
        labels=one.labels[numbers],
        keys=[one.keys[row] for row in rows],
        roles=[one.roles[row] for row in rows],
        columns={name: [values[row] for row in rows] for name, values in one.columns.items()},
    )


def _check_labels(one: EmbeddedSet, other: EmbeddedSet) -> None:
    """Numbers of identities may differ between files, but not which pictures are of one identity."""
    for left, right in ((one, other), (other, one)):
        meant: dict[int, tuple[int, str]] = {}
        for key, label, its in zip(one.keys, left.labels.tolist(), right.labels.tolist(), strict=True):
            if label < 0 <= its:
                raise UserError(f"{key} has a label in {right.path} and none in {left.path}; embed the same sources")
            first, where = meant.setdefault(label, (its, key))
            if label >= 0 and first != its:
                raise UserError(
                    f"{left.path} and {right.path} have other labels: pictures {where} and {key} show one identity in "
                    f"{left.path.name}, and not in {right.path.name}; embed the same sources"
                )
