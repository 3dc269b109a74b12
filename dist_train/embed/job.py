"""Embedding a source into a file, in parts: stopped at any moment, the same call goes on where it was."""

import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from tqdm import tqdm

from dist_train.data.reject import STORAGE_REASONS, Reject, counted
from dist_train.embed.min_quality import MinQuality
from dist_train.embed.parts import LeftOut, Parts
from dist_train.embed.pictures import Picture, PictureSource, Place
from dist_train.embed.table import (
    FORMAT_VERSION,
    SUFFIXES,
    EmbeddingFile,
    as_array,
    embedding_table,
    rejects_path,
)
from dist_train.errors import UserError, WorkError
from dist_train.evaluate.batches import embed_batches
from dist_train.evaluate.models import Model
from dist_train.evaluate.sameness import warn_of_sameness
from dist_train.runtime.lock import only_job
from dist_train.runtime.progress import progress_bar
from dist_train.runtime.ranks import Ranks
from dist_train.runtime.written import remove_temporaries
from dist_train.section import first_difference

logger = logging.getLogger(__name__)

PART_ROWS = 1024  # inputs whose work is lost at most, on each rank, when a job is stopped
_POLL_S = 0.2
_NO_PIXELS = np.empty((0, 0, 3), np.uint8)

Outcomes = list[tuple[Place, Picture | Reject]]


@dataclass(frozen=True)
class Embedded:
    """What a job made.

    Attributes:
        path: of the embeddings.
        count: of the inputs with an embedding.
        left_out: the inputs without one; all are listed beside the output.
    """

    path: Path
    count: int
    left_out: LeftOut

    @property
    def reasons(self) -> Counter[str]:
        """Number of inputs without an embedding, by reason."""
        return self.left_out.reasons

    def __str__(self) -> str:
        text = f"{self.path}: {self.count:,} embedding{'' if self.count == 1 else 's'}"
        if self.reasons:
            text += f"; left out: {counted(self.reasons)}, each with its reason in {rejects_path(self.path)}"
        return text

    def examples(self) -> list[str]:
        """Lines for people: the first inputs that were left out, and how many more there are."""
        more = self.reasons.total() - len(self.left_out.examples)
        return [f"  {line}" for line in self.left_out.examples] + ([f"  and {more:,} more"] if more else [])


def embed_source(
    model: Model,
    source: PictureSource,
    out: Path,
    *,
    batch_size: int = 64,
    flip: bool = True,
    ranks: Ranks | None = None,
    part_rows: int = PART_ROWS,
    quiet: bool = False,
    min_quality: MinQuality | None = None,
) -> Embedded | None:
    """Embed all pictures of `source` into `out`, a `.parquet` or a `.npy` (with a table of names beside it).

    An embedding is f(picture) + f(mirrored picture), not normalised. The work is done in parts that appear by rename
    in `OUT.parts`, and joined at the end: nothing is lost and nothing is there twice, whenever the job was stopped and
    on however many ranks it goes on. What is held in memory does not grow with the source. The ranks share parts
    among them without talking: all must see the same disk.

    Args:
        model: the network.
        source: gives the pictures.
        out: the file; finished already, it is left alone.
        batch_size: pictures per rank and forward pass, and those held decoded.
        flip: add the mirrored picture's embedding.
        ranks: this process among others; default: it is alone.
        part_rows: inputs of a part.
        quiet: show no bar.
        min_quality: pictures of a lower one are left out, and listed as others are.

    Returns:
        What was made, on rank 0; None on the other ranks.

    Raises:
        UserError: an empty source, an output of another kind, or of another model or other options.
        WorkError: the disk is full, the source's storage fails, embeddings are not finite, or no picture has any.
    """
    ranks = ranks or Ranks(0, 0, 1, torch.device("cpu"))
    parts = Parts(out)
    with ExitStack() as stack:

        def prepare() -> Embedded | None:
            if ranks.rank:
                return None
            description = describe_job(model, source, flip, min_quality)
            _check_out(out)
            stack.enter_context(only_job(parts.home / "lock", out))
            return _begin(parts, description, source, part_rows)

        finished = ranks.gather(ranks.agree(prepare))[0]
        if finished is not None:
            return finished if ranks.rank == 0 else None
        ranks.agree(parts.open)
        todo = ranks.gather(parts.undone() if ranks.rank == 0 else [])[0]
        mine = todo[ranks.rank :: ranks.world_size]
        with _bar(parts, todo, mine, ranks, quiet) as bar:
            _embed_parts(parts, mine, model, source, batch_size, flip, bar, min_quality)
        if ranks.rank:
            return None
        while parts.undone():  # parts of other ranks; if one of these dies, its launcher ends this one too
            time.sleep(_POLL_S)
        return Embedded(out, *parts.join())


def describe_job(
    model: Model, source: PictureSource, flip: bool, min_quality: MinQuality | None = None
) -> dict[str, Any]:
    """All that decides what the embeddings are, as JSON values."""
    return {
        "version": FORMAT_VERSION,
        "model": {"name": model.name, "sha256": model.digest()} | ({"told": dict(model.told)} if model.told else {}),
        "image_size": model.image_size,
        "embedding_dim": model.embedding_dim,
        "flip": flip,
        "source": source.described(),
    } | ({"min_quality": str(min_quality)} if min_quality else {})


def _check_out(out: Path) -> None:
    if out.suffix not in SUFFIXES:
        raise UserError(f"output {out}: expected a name that ends in .parquet or .npy")
    if out.is_dir():
        raise UserError(f"output {out}: is a directory; expected the name of a file")
    try:
        Parts(out).home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output {out}: {Parts(out).home} cannot be made: {error.strerror}") from error


def _begin(parts: Parts, description: dict[str, Any], source: PictureSource, part_rows: int) -> Embedded | None:
    """Make sure that there is a list of inputs; what was made, where all is done already."""
    remove_temporaries(parts.home)  # of a job that was killed
    begun = parts.description
    if begun is not None:
        _check_same(parts.out, begun, description)
    elif parts.out.exists():
        parts.remove()
        made = EmbeddingFile(parts.out)
        made.close()
        _check_same(parts.out, made.description, description)
        logger.info("%s is complete already", parts.out)
        return Embedded(parts.out, made.count, parts.left_out())
    else:
        try:
            parts.begin(description, source, part_rows)
        except BaseException:
            parts.remove()
            raise
    return None


def _check_same(out: Path, begun: dict[str, Any], wanted: dict[str, Any]) -> None:
    if found := first_difference(_essential(begun), _essential(wanted), cut_digests=True):
        raise UserError(f"{out}: was begun with another model or other options: {found}; use another OUT, or remove it")


def _essential(description: dict[str, Any]) -> dict[str, Any]:
    """The description less the model's name, which a copy of the model may have changed."""
    return {**description, "model": {key: value for key, value in description["model"].items() if key != "name"}}


class _Collected:
    """What became of the inputs of a part so far."""

    def __init__(self, embedding_dim: int, min_quality: MinQuality | None) -> None:
        self._min_quality = min_quality
        self._places: list[Place] = []
        self._pictures: list[Picture] = []
        self._features = [np.empty((0, embedding_dim), np.float32)]
        self._norms = [np.empty(0, np.float32)]
        self.rejects: list[tuple[Place, Reject]] = []

    def add(self, outcomes: Outcomes, model: Model, flip: bool) -> None:
        kept: list[tuple[Place, Picture]] = []
        for place, found in outcomes:
            # A score is known before the network has looked at a picture.
            left_out = self._refused("score", found.score) if isinstance(found, Picture) else found
            if isinstance(found, Picture) and left_out is None:
                kept.append((place, found))
            elif left_out is not None:
                self.rejects.append((place, left_out))
        if not kept:
            return
        pixels = [picture.pixels for _, picture in kept]
        name = f"{kept[0][0].path} to {kept[-1][0].path}"
        batches = embed_batches(model.embed, pixels.__getitem__, range(len(kept)), len(kept), flip=flip, name=name)
        for numbers, features, norms in batches:
            refused = [self._refused("norm", norm) for norm in norms.tolist()]
            rows = [row for row, why in enumerate(refused) if why is None]
            self._features.append(features[rows].numpy())
            self._norms.append(norms[rows].numpy())
            for number, why in zip(numbers, refused, strict=True):
                place, picture = kept[number]
                if why is None:
                    self._places.append(place)
                    # The pixels are not needed any more; a part may be larger than memory.
                    self._pictures.append(picture._replace(pixels=_NO_PIXELS))
                else:
                    self.rejects.append((place, why))

    def _refused(self, kind: str, value: float | None) -> Reject | None:
        least = self._min_quality
        return None if least is None or least.kind != kind else least.refused(value)

    def table(self) -> pa.Table:
        """The rows of the part.

        Raises:
            WorkError: the storage lost all of them.
        """
        if not self._places and all(found.reason in STORAGE_REASONS for _, found in self.rejects):
            place, found = self.rejects[0]
            raise WorkError(
                f"none of {len(self.rejects)} inputs can be read, the first: {place.path}: {found.reason}: "
                f"{found.detail}; is the disk there? The same command goes on"
            )
        return embedding_table(
            self._places, self._pictures, np.concatenate(self._norms), np.concatenate(self._features)
        )


def _embed_parts(
    parts: Parts,
    todo: Sequence[int],
    model: Model,
    source: PictureSource,
    batch_size: int,
    flip: bool,
    bar: "tqdm[Any]",
    min_quality: MinQuality | None,
) -> None:
    left_out, judged = 0, False
    for part, chunks in groupby(_read_ahead(parts, todo, source, batch_size), key=itemgetter(0)):
        collected = _Collected(model.embedding_dim, min_quality)
        for _, outcomes in chunks:
            collected.add(outcomes, model, flip)
            bar.set_postfix(left_out=left_out + len(collected.rejects), refresh=False)
            bar.update(len(outcomes))
        table = collected.table()
        if not judged and table.num_rows:
            judged = True
            warn_of_sameness(f"{parts.out}", torch.from_numpy(as_array(table["embedding"])))
        parts.commit(part, table, collected.rejects)
        left_out += len(collected.rejects)


def _read_ahead(
    parts: Parts, todo: Sequence[int], source: PictureSource, batch_size: int
) -> Iterator[tuple[int, Outcomes]]:
    """The inputs of the parts, some at a time; while the network works on these, the next are read and cut."""
    pending: tuple[int, Future[Outcomes]] | None = None
    with ThreadPoolExecutor(1) as reader:
        for part in todo:
            inputs = parts.inputs(part)
            for start in range(0, inputs.num_rows, batch_size):
                ahead = part, reader.submit(source.read, inputs.slice(start, batch_size))
                if pending:
                    yield pending[0], pending[1].result()
                pending = ahead
        if pending:
            yield pending[0], pending[1].result()


def _bar(parts: Parts, todo: Sequence[int], mine: Sequence[int], ranks: Ranks, quiet: bool) -> "tqdm[Any]":
    """A bar over this rank's parts and those done before."""
    undone = frozenset(todo)
    before = sum(parts.inputs(part).num_rows for part in range(len(parts)) if part not in undone)
    return progress_bar(
        total=before + sum(parts.inputs(part).num_rows for part in mine),
        initial=before,
        unit=" pictures",
        desc="embed" if ranks.world_size == 1 else f"embed, rank 0 of {ranks.world_size}",
        disable=quiet or ranks.rank != 0,
        smoothing=0.05,
        mininterval=0.5,
    )
