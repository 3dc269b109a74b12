"""`headcount data cluster`."""

import logging
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dist_train.errors import UserError
from dist_train.runtime.terminal import echo

if TYPE_CHECKING:
    from data_prep.cluster.job import ByGraph, ByKMeans, Clustered

logger = logging.getLogger(__name__)

_TIMEOUT_S = 86_400.0  # the other ranks wait while the first one joins clusters


class Method(StrEnum):
    """How pictures are clustered."""

    GRAPH = "graph"
    KMEANS = "kmeans"


def cluster(
    embeddings: Annotated[Path, typer.Argument(help="embeddings of a set of shards, as `headcount embed` writes them")],
    out: Annotated[Path, typer.Argument(file_okay=False, help="directory of the new set")],
    source: Annotated[
        Path | None, typer.Option("--set", help="the set, where it has moved since it was embedded")
    ] = None,
    method: Annotated[
        Method,
        typer.Option(
            help="graph: as many clusters as the threshold makes; kmeans: as many as --clusters says, for pre-training"
        ),
    ] = Method.GRAPH,
    threshold: Annotated[
        float | None, typer.Option(help="graph: least mean cosine of the pictures of two clusters that are joined")
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="graph: take the threshold from this file of `headcount eval --json`")
    ] = None,
    fmr: Annotated[float, typer.Option(help="rate of false matches whose threshold --calibration gives")] = 1e-4,
    clusters: Annotated[int | None, typer.Option(min=1, help="kmeans: number of clusters")] = None,
    labels: Annotated[
        int, typer.Option(min=1, max=64, help="kmeans: nearest clusters that become labels of a picture")
    ] = 1,
    min_size: Annotated[int, typer.Option(min=1, help="pictures of the smallest cluster that is kept")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="kmeans: seed of the first centres")] = 0,
    device: Annotated[str, typer.Option(help="where embeddings are compared: auto, cpu or cuda")] = "auto",
) -> None:
    """Make identities of unlabelled pictures: clusters of their embeddings become the classes of a new set.

    The set is one that `headcount train` reads: its pictures keep their bytes, its labels are the clusters. Pictures in
    clusters smaller than --min-size are left out, and counted. OUT/clusters.parquet has every picture's cluster and its
    cosine with the centre. The command is one process; under torchrun ranks share the comparisons.

    Examples:

      headcount embed runs/faces sets/unlabelled unlabelled.npy

      headcount data cluster unlabelled.npy sets/clusters --threshold 0.35

      headcount data cluster unlabelled.npy sets/clusters --calibration eval.json --fmr 1e-4

      headcount data cluster unlabelled.npy sets/concepts --method kmeans --clusters 10000 --labels 8
    """
    from data_prep.cluster.job import cluster_set
    from dist_train.runtime.ranks import join_ranks, leave_ranks

    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {device!r}: expected auto, cpu or cuda")
    ranks = join_ranks(device, None, _TIMEOUT_S)
    try:
        how = ranks.agree(lambda: _method(embeddings, method, threshold, calibration, fmr, clusters, labels, seed))
        done = cluster_set(embeddings, out, how, given=source, min_size=min_size, ranks=ranks)
        if done is not None:
            echo(_told(out, done, min_size))
    finally:
        leave_ranks(ranks)


def _method(
    embeddings: Path,
    method: Method,
    threshold: float | None,
    calibration: Path | None,
    fmr: float,
    clusters: int | None,
    labels: int,
    seed: int,
) -> "ByGraph | ByKMeans":
    from data_prep.cluster.job import ByGraph, ByKMeans

    if method is Method.KMEANS:
        if clusters is None:
            raise UserError("--method kmeans needs --clusters, their number")
        if threshold is not None or calibration is not None:
            raise UserError("--method kmeans takes neither --threshold nor --calibration; --clusters says how many")
        return ByKMeans(clusters, labels, seed)
    if clusters is not None or labels > 1:
        raise UserError("--method graph takes neither --clusters nor --labels; the threshold says how many there are")
    if (threshold is None) == (calibration is None):
        raise UserError(
            "--method graph needs either --threshold or --calibration EVAL.json, from `headcount eval --json`"
        )
    if calibration is None:
        return ByGraph(float(threshold or 0))
    return ByGraph(_calibrated(embeddings, calibration, fmr))


def _calibrated(embeddings: Path, calibration: Path, fmr: float) -> float:
    """The cosine from which on two pictures match at a rate of false matches, for the model that embedded them."""
    from dist_train.embed.table import EmbeddingFile
    from dist_train.evaluate.calibration import Owner, read_calibration

    file = EmbeddingFile(embeddings)
    file.close()
    model = file.description["model"]
    found = read_calibration(calibration, Owner(str(model["name"]), str(model["sha256"])))
    threshold, point = found.at(fmr)
    if not point.resolved:
        logger.warning("%s: has too few pairs of different people to measure a rate of %g", calibration, fmr)
    return threshold


def _told(out: Path, done: "Clustered", min_size: int) -> str:
    import numpy as np

    manifest, counts = done.written.manifest, done.written.counts
    sizes = f"{counts.min():,} to {counts.max():,} pictures each, median {np.median(counts):g}"
    plural = "" if manifest.num_classes == 1 else "s"
    lines = [f"{out}: {manifest.samples:,} pictures in {manifest.num_classes:,} cluster{plural} of {sizes}"]
    left = [(done.small, f"in clusters of fewer than {min_size}"), (done.unusable, "that training cannot use")]
    left.append((done.not_embedded, "without an embedding"))
    if told := ", ".join(f"{count:,} {what}" for count, what in left if count):
        lines.append(f"left out: {told}")
    return "\n".join(lines)
