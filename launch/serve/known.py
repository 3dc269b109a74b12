"""Known people: those of a gallery's files and those enrolled since, searched as one."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from data_prep.mtcnn.faces import Picture
from dist_train.data.aligner import Aligner
from dist_train.embed.enrolled import LOG, Enrolled, Entry
from dist_train.embed.gallery import Gallery, Match
from dist_train.errors import UserError
from dist_train.evaluate.models import Model
from dist_train.evaluate.search import nearest
from launch.embed.photos import matched_pictures
from launch.serve.finder import encoded

PICTURE_PX = 112


class Hit(NamedTuple):
    """Somebody known who is near to a query.

    Attributes:
        score: cosine, -1 to 1.
        match: in the gallery's files; None for somebody enrolled.
        entry: of somebody enrolled.
    """

    score: float
    match: Match | None
    entry: Entry | None


class Known:
    """All who can be found.

    Args:
        base: the gallery's files; None for none.
        enrolled: None for nobody.
    """

    def __init__(self, base: Gallery | None, enrolled: Enrolled | None) -> None:
        self.base, self.enrolled = base, enrolled

    def __len__(self) -> int:
        return (len(self.base) if self.base else 0) + (len(self.enrolled) if self.enrolled else 0)

    def search(self, queries: Tensor, k: int) -> list[list[Hit]]:
        """The k nearest of each unit query [Q, D], the nearest first; all where there are fewer."""
        hits: list[list[Hit]] = [[] for _ in queries]
        if self.base is not None and len(queries):
            for mine, matches in zip(hits, self.base.search(queries, k), strict=True):
                mine += [Hit(match.score, match, None) for match in matches]
        if self.enrolled is not None and len(queries):
            rows, entries = self.enrolled.snapshot()
            if entries:
                scores, numbers = nearest(queries, rows, min(k, len(entries)))
                for mine, *both in zip(hits, scores.tolist(), numbers.tolist(), strict=True):
                    mine += [Hit(score, None, entries[number]) for score, number in zip(*both, strict=True)]
        return [sorted(mine, key=lambda hit: -hit.score)[:k] for mine in hits]

    def pictures(self, hits: Sequence[Hit], limit_s: float) -> list[bytes | None]:
        """JPEGs of those found; None where there is none, or none any more, or it was not read within `limit_s`."""
        matches = [hit.match for hit in hits if hit.match is not None]
        shown = iter(matched_pictures(matches, self.base.sources if self.base else [], PICTURE_PX, limit_s))
        return [self._kept(hit.entry) if hit.match is None else _encoded(next(shown)) for hit in hits]

    def _kept(self, entry: Entry | None) -> bytes | None:
        """The picture that was kept of somebody enrolled."""
        return None if entry is None or self.enrolled is None else self.enrolled.picture(entry)

    def close(self) -> None:
        """Close the log of the enrolled."""
        if self.enrolled is not None:
            self.enrolled.close()


def _encoded(pixels: Picture | None) -> bytes | None:
    return None if pixels is None else encoded(pixels)


def open_known(
    directory: Path, base: Gallery | None, model: Model, flip: bool, aligner: Aligner | None, allow_enroll: bool
) -> Known:
    """Those known in a gallery.

    Args:
        directory: of the gallery.
        base: its files; None where it has none.
        model: that is served.
        flip: whether the mirrored face's embedding is added.
        aligner: that places faces; None: pictures are taken whole.
        allow_enroll: people may be added; the directory is made if it is missing.

    Raises:
        UserError: nobody is known there and nobody may be added, or they were enrolled by another model.
    """
    there = (directory / LOG).exists()
    if base is None and not there and not allow_enroll:
        Gallery(directory)  # says what is wrong
    made_by = {
        "model": {"name": model.name, "sha256": model.digest(), "told": dict(model.told)},
        "embedding_dim": model.embedding_dim,
        "flip": flip,
        "aligner": None if aligner is None else aligner.sha256,
    }
    if not (there or allow_enroll):
        return Known(base, None)
    try:
        return Known(base, Enrolled(directory, made_by, writable=allow_enroll))
    except OSError as error:
        raise UserError(f"gallery {directory}: {error.strerror or error}; --allow-enroll writes there") from error
