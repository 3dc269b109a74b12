"""Building a gallery of the same pictures as several models, or sensors, see them: its cosines are fused ones."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dist_train.embed.embedded import read_embedded
from dist_train.embed.gallery import Gallery, store_gallery
from dist_train.embed.segment import ENTRIES
from dist_train.embed.table import EmbeddingFile
from dist_train.errors import UserError
from dist_train.evaluate.fusion import fused_rows
from dist_train.evaluate.fusion_file import FusedModel, Fusion, described, fused_digest
from dist_train.evaluate.joining import join
from dist_train.section import first_difference


def build_fused_gallery(files: Sequence[Path], directory: Path, fusion: Fusion) -> tuple[Gallery, list[str]]:
    """Make a gallery whose cosines are the weighted sums that `headcount eval --fuse` judged.

    Rows are joined by the path of their picture; names, labels and places are those of the first model's file. All
    embeddings are held in memory.

    Args:
        files: embeddings, one file for each model of the fusion, in any order.
        directory: of the gallery; must not exist.
        fusion: the models and their weights.

    Returns:
        The gallery, and what to say of pictures that are not in all files.

    Raises:
        UserError: files of other models, that cannot be joined, or zero or not finite, or `directory` exists.
        WorkError: the disk is full, or a file is damaged.
    """
    if directory.exists():
        raise UserError(f"gallery {directory}: exists already; remove it, or name another")
    descriptions, paths = _in_order(files, fusion.parts)
    sets = [read_embedded(path) for path in paths]
    for each in sets:
        if len(zero := (each.features.norm(dim=1) < 0.5).nonzero()):
            raise UserError(
                f"embeddings {each.path}: row {int(zero[0])}, {each.keys[int(zero[0])]}: is zero; embed again"
            )
    joined, notes = join(sets)
    rows = fused_rows([each.features for each in joined], [part.weight for part in fusion.parts])
    with closing(EmbeddingFile(paths[0])) as first:
        names = pa.Table.from_batches(list(first.names()))
    numbers = {key: number for number, key in enumerate(sets[0].keys)}
    names = names.take(pa.array([numbers[key] for key in joined[0].keys]))
    entries = names.append_column(ENTRIES.field("source"), pa.array(np.zeros(len(names), np.int32))).cast(ENTRIES)
    body = {
        "model": {"name": " + ".join(part.name for part in fusion.parts), "sha256": fused_digest(fusion.parts)},
        "embedding_dim": rows.shape[1],
        "image_size": fusion.parts[0].image_size,
        "flip": fusion.parts[0].flip,
        "sources": [descriptions[0]["source"]],
        "fusion": {
            "parts": described(fusion.parts),
            "align": [bool(each["source"].get("align")) for each in descriptions],
            "thresholds": fusion.thresholds,
        },
    }
    store_gallery(directory, rows.numpy(), entries, body)
    return Gallery(directory), notes


def _in_order(files: Sequence[Path], parts: Sequence[FusedModel]) -> tuple[list[dict[str, Any]], list[Path]]:
    """The files' descriptions and paths, in the order of the models of the fusion."""
    found = []
    for path in files:
        with closing(EmbeddingFile(path)) as file:
            found.append((file.description, path))
    if len(found) != len(parts):
        raise UserError(
            f"{len(found)} file{'s' if len(found) > 1 else ''} of embeddings for a fusion of {len(parts)} models "
            f"({', '.join(part.name for part in parts)}); give one file for each"
        )
    ordered = []
    for part in parts:
        same = [each for each in found if each[0]["model"]["sha256"] == part.sha256]
        if not same:
            raise UserError(
                f"none of {', '.join(map(str, files))} is by model {part.name} (SHA-256 {part.sha256[:12]}), which the "
                "fusion takes; embed with that model, or learn the fusion of these files"
            )
        # Two files may be of one model that was told two things.
        made = [(first_difference(part.made_by, FusedModel.of(each[0], part.weight).made_by), each) for each in same]
        if all(difference for difference, _ in made):
            raise UserError(f"{same[0][1]}: not made as the embeddings that the fusion was learned from: {made[0][0]}")
        chosen = next(each for difference, each in made if not difference)
        found.remove(chosen)
        ordered.append(chosen)
    return [each for each, _ in ordered], [path for _, path in ordered]
