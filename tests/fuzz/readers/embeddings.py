"""Files of embeddings, galleries, and what a stopped job of `embed` has left."""

import shutil
import tempfile
from functools import lru_cache
from pathlib import Path

import torch

from dist_train.embed.gallery import Gallery, build_gallery
from dist_train.embed.job import embed_source
from dist_train.embed.parts import Parts
from dist_train.evaluate.models import Model
from launch.embed.crops import Centre
from launch.embed.open import open_origin
from launch.embed.photos import Photos, matched_pictures
from tests.data.sets import encode, picture
from tests.fuzz.formats import ARRAY, JSON, PARQUET
from tests.fuzz.mutations import TEXT
from tests.fuzz.reader import FIXED, Reader, Scene, each_target, files_in, put

SIDE_PX, DIM = 16, 3


def _model() -> Model:
    return Model("means", lambda images: images.mean(dim=(2, 3)) + 2, SIDE_PX, DIM, lambda: "0" * 64)


def _photos() -> Photos:
    for number in range(4):
        put(f"embed/p{number % 2}/{number}.png", encode(picture(number, SIDE_PX), ".png"))
    put("embed/p0/bad.png", b"no picture")
    return Photos(open_origin(FIXED / "embed"), Centre(SIDE_PX))


@lru_cache
def _embedded() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        for name in ("e.parquet", "n.npy"):
            embed_source(_model(), _photos(), home / name, quiet=True)
        build_gallery([home / "e.parquet"], home / "gallery", quiet=True)
        return files_in(home)


@lru_cache
def _stopped() -> dict[str, bytes]:
    """A job of three parts, all done, before they are joined; and one that ended."""
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        real, kept = Parts.join, home / "kept"
        Parts.join = lambda self: (shutil.copytree(self.home, kept), real(self))[1]  # type: ignore[method-assign]
        try:
            embed_source(_model(), _photos(), home / "e.parquet", part_rows=2, quiet=True)
        finally:
            Parts.join = real  # type: ignore[method-assign]
        return {f"e.parquet.parts/{name}": data for name, data in files_in(kept).items()}


def _search(gallery: Gallery) -> None:
    matched_pictures(gallery.search(torch.ones(1, gallery.embedding_dim), 2)[0], gallery.sources, SIDE_PX)


def _build(home: Path) -> None:
    (embeddings,) = [path for path in (home / "e.parquet", home / "n.npy") if path.exists()]
    _search(build_gallery([embeddings], home / "built", quiet=True))


def _only(prefix: str, *targets: str) -> list[Scene]:
    return each_target({n: data for n, data in _embedded().items() if n.startswith(prefix)}, *targets)


def _resume(home: Path) -> None:
    embed_source(_model(), _photos(), home / "e.parquet", part_rows=2, quiet=True)


def _finished(home: Path) -> None:
    """A finished output is looked at, and left alone."""
    embed_source(_model(), _photos(), home / "e.parquet", quiet=True)


def _parts(*suffixes: str) -> list[Scene]:
    files = _stopped()
    return each_target(files, *(name for name in files if name.endswith(suffixes)))


READERS = (
    Reader("embeddings .parquet", lambda: _only("e", "e.parquet"), _build, PARQUET),
    Reader("embeddings .npy", lambda: _only("n", "n.npy"), _build, ARRAY),
    Reader("embeddings' names", lambda: _only("n", "n.names.parquet"), _build, PARQUET, weight=0.5),
    Reader(
        "finished output",
        lambda: _only("e.", "e.parquet", "e.parquet.rejects.csv"),
        _finished,
        PARQUET + TEXT,
        weight=0.5,
    ),
    Reader(
        "gallery.json",
        lambda: _only("gallery", "gallery/gallery.json"),
        lambda h: _search(Gallery(h / "gallery")),
        JSON,
    ),
    Reader(
        "gallery's rows",
        lambda: _only("gallery", "gallery/embeddings.npy", "gallery/entries.arrow"),
        lambda home: _search(Gallery(home / "gallery")),
        ARRAY,
    ),
    Reader("embed: job.json", lambda: _parts("job.json"), _resume, JSON, weight=0.5),
    Reader("embed: parts", lambda: _parts("000000.parquet", ".arrow", ".csv"), _resume, PARQUET + TEXT[:4], weight=0.5),
)
