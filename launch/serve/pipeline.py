"""The pipeline of a service: photos of several requests through one finder, one network and one search."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dist_train.data.reject import Reject
from dist_train.evaluate.embeddings import embed_pictures
from dist_train.evaluate.models import Model
from launch.serve.finder import Face, Finder, Seen
from launch.serve.known import Hit, Known


class Task(NamedTuple):
    """A photo, and what is wanted of it.

    Attributes:
        photo: encoded.
        faces: which are embedded: `none`, the `main` one or `all`.
        matches: how many are searched for each embedded face.
    """

    photo: bytes
    faces: str = "all"
    matches: int = 0


class Embedded(NamedTuple):
    """A face with its embedding.

    Attributes:
        number: of the face in `Seen.faces`.
        face: it.
        unit: float32 [D], of length 1.
        norm: length of the network's raw output.
        hits: who is near.
    """

    number: int
    face: Face
    unit: NDArray[np.float32]
    norm: float
    hits: list[Hit]


class Done(NamedTuple):
    """The answer to a task: what was seen, and the embedded faces among it."""

    seen: Seen
    embedded: list[Embedded]


class Pipeline:
    """The way from photos to answers.

    Args:
        finder: finds faces.
        model: embeds them.
        flip: add the embedding of the mirrored face.
        batch: faces in a forward pass.
        known: who is searched; None where nobody is.
    """

    def __init__(self, finder: Finder, model: Model, flip: bool, batch: int, known: Known | None) -> None:
        self._finder, self._model, self._flip, self._batch, self.known = finder, model, flip, batch, known

    def __call__(self, tasks: Sequence[Task]) -> list[Done | Reject]:
        """The answer to each task, or why its photo cannot be used."""
        seen = self._finder([task.photo for task in tasks])
        chosen = [_chosen(task, each) for task, each in zip(tasks, seen, strict=True)]
        crops = [face.crop for faces in chosen for _, face in faces]
        units, norms = self._embed(crops)
        hits = self._search([task for task, faces in zip(tasks, chosen, strict=True) for _ in faces], units)
        rows = iter(zip(units.numpy(), norms.tolist(), hits, strict=True))
        return [
            each
            if isinstance(each, Reject)
            else Done(each, [Embedded(number, face, *next(rows)) for number, face in faces])
            for each, faces in zip(seen, chosen, strict=True)
        ]

    def _embed(self, crops: Sequence[NDArray[np.uint8]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Unit embeddings [n, D], and lengths of the raw outputs [n]."""
        if not crops:
            return torch.empty(0, self._model.embedding_dim), torch.empty(0)
        found = embed_pictures(
            self._model.embed, lambda number: crops[number], len(crops), self._batch, flip=self._flip, name="photo"
        )
        return found.normalized(), found.norms

    def _search(self, owners: Sequence[Task], units: torch.Tensor) -> list[list[Hit]]:
        """Who is near to each embedding; all in one pass over the gallery."""
        most = max((task.matches for task in owners), default=0)
        if not most or self.known is None:
            return [[] for _ in owners]
        asked = [number for number, task in enumerate(owners) if task.matches]
        found = dict(zip(asked, self.known.search(units[asked], most), strict=True))
        return [found.get(number, [])[: task.matches] for number, task in enumerate(owners)]


def _chosen(task: Task, seen: Seen | Reject) -> list[tuple[int, Face]]:
    """The faces that are embedded, with their numbers."""
    if isinstance(seen, Reject) or task.faces == "none":
        return []
    if task.faces == "all":
        return list(enumerate(seen.faces))
    return [] if seen.main is None else [(seen.main, seen.faces[seen.main])]
