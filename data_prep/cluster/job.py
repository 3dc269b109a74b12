"""From a file of embeddings to a set whose identities are clusters.

find the pictures in their set ──► cluster the embeddings, over the ranks ──► write the set, on the first rank
"""

import logging
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_prep.cluster.source import ClusterSource, Usable, open_cluster_source, usable_rows
from data_prep.cluster.write import Labelled, Written, write_clusters
from dist_train.cluster.graph import cluster_by_graph, first_seen
from dist_train.cluster.kmeans import cluster_by_kmeans
from dist_train.cluster.rows import Places, read_places, stored_rows
from dist_train.data.counters import Ints
from dist_train.data.manifest import MANIFEST_NAME, refuse_overlap
from dist_train.embed.table import EmbeddingFile
from dist_train.errors import UserError
from dist_train.runtime.lock import only_job
from dist_train.runtime.ranks import ALONE, Ranks
from dist_train.runtime.written import MAKE_ROOM, write_failures

logger = logging.getLogger(__name__)

_LOCK_NAME = "lock"


@dataclass(frozen=True, slots=True)
class ByGraph:
    """Clusters of pictures whose mean cosine reaches a threshold; as many as there are.

    Attributes:
        threshold: between 0 and 1.
    """

    threshold: float

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise UserError(f"threshold {self.threshold:g}: expected a cosine between 0 and 1, without them")


@dataclass(frozen=True, slots=True)
class ByKMeans:
    """A given number of clusters about centres.

    Attributes:
        clusters: K.
        labels: nearest centres of a picture that become its labels, L.
        seed: of the first centres.
    """

    clusters: int
    labels: int = 1
    seed: int = 0


class Clustered(NamedTuple):
    """What came of it.

    Attributes:
        written: the set.
        small: pictures in clusters that are too small.
        unusable: pictures that training cannot use.
        not_embedded: samples without an embedding.
    """

    written: Written
    small: int
    unusable: int
    not_embedded: int


def cluster_set(
    embeddings: Path,
    out: Path,
    how: ByGraph | ByKMeans,
    *,
    given: Path | None = None,
    min_size: int = 2,
    ranks: Ranks = ALONE,
    quiet: bool = False,
) -> Clustered | None:
    """Make a set of clusters out of embedded pictures of unknown identities; a collective.

    A stopped job leaves the finished blocks of its search in `OUT.parts`; the same call goes on with the first that is
    not there, on any number of ranks, and gives the same set.

    Args:
        embeddings: written by `headcount embed`, of a set of shards.
        out: directory of the new set; not there, or empty.
        how: the method.
        given: where the set is now; None: where it was when it was embedded.
        min_size: pictures of the smallest cluster that becomes an identity.
        ranks: share the work.
        quiet: show no bars.

    Returns:
        What was made, on rank 0; None on the other ranks.

    Raises:
        UserError: embeddings of something else, of a set that has changed, not finite or zero, no cluster, or another
            job that works on `out`.
        WorkError: a file is damaged, or the disk is full.
    """
    file = ranks.agree(lambda: EmbeddingFile(embeddings))
    with closing(file), ExitStack() as working:
        prepared = ranks.agree(lambda: None if ranks.rank else _prepared(file, out, given, working))
        count = file.count
        whole = isinstance(how, ByGraph)
        start, stop = (
            (0, count) if whole else (count * rank // ranks.world_size for rank in (ranks.rank, ranks.rank + 1))
        )
        features = ranks.agree(lambda: stored_rows(file, start, stop)).to(ranks.device)
        with ranks.first_speaks():
            clusters, cosines = _clustered(features, how, ranks, quiet, parts_of(out))
        if prepared is None:
            return None
        source, places, usable = prepared
        labelled = _labelled(clusters, cosines, usable.rows, min_size)
        if not labelled.classes:
            raise UserError(
                f"embeddings {embeddings}: no cluster has {min_size} pictures among {count:,}; lower the threshold, or "
                "--min-size"
            )
        if labelled.classes == 1:
            logger.warning("%s: all pictures in clusters are in one; raise the threshold, or look at the model", out)
        written = write_clusters(out, source, file, places, labelled, quiet)
        unusable = int((~usable.rows).sum())
        small = count - unusable - int((labelled.labels[:, 0] >= 0).sum())
        return Clustered(written, small, unusable + written.unusable, usable.not_embedded)


def parts_of(out: Path) -> Path:
    """Directory of a job's own files, beside its output; a finished job removes it."""
    return out.with_name(f"{out.name}.parts")


@contextmanager
def _only_here(out: Path) -> Iterator[None]:
    """Hold the lock of `out`, in the directory of the job's own files; that stays only with blocks for a next start.

    Raises:
        UserError: another job works on `out`.
        WorkError: the directory cannot be made.
    """
    home = parts_of(out)
    with write_failures(f"set {out}", MAKE_ROOM):
        home.mkdir(parents=True, exist_ok=True)
    with only_job(home / _LOCK_NAME, out):
        try:
            yield
        finally:
            # With the lock still held: who waits for the file that goes here finds it gone, and makes a new one.
            if (out / MANIFEST_NAME).exists() or not any(each.is_dir() for each in home.iterdir()):
                shutil.rmtree(home, ignore_errors=True)


def _prepared(
    file: EmbeddingFile, out: Path, given: Path | None, working: ExitStack
) -> tuple[ClusterSource, Places, Usable]:
    """The set of `file`, and what can be used of it; nothing is computed before it is known to be there.

    From here on `out` is this job's alone, until `working` ends.
    """
    source = open_cluster_source(file, given)
    refuse_overlap("OUT", out, source.path)
    _check_empty(out)
    if not file.count:
        raise UserError(f"embeddings {file.path}: no row in it; there is nothing to cluster")
    working.enter_context(_only_here(out))
    _check_empty(out)  # a job before this one may just have finished
    places = read_places(file)
    return source, places, usable_rows(source, places, file)


def _check_empty(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"OUT {out}: holds something already; remove it, or use another OUT")


def _clustered(
    features: Tensor, how: ByGraph | ByKMeans, ranks: Ranks, quiet: bool, keep: Path
) -> tuple[Ints, NDArray[np.float32]]:
    """Clusters int64 [N, L] of all pictures, and their cosines float32 [N] with the first one's centre."""
    if isinstance(how, ByGraph):
        labels = cluster_by_graph(features, how.threshold, ranks, quiet, keep)
        return labels[:, None], cosines_with_centers(features, labels)
    found = cluster_by_kmeans(features, how.clusters, how.seed, ranks, how.labels, quiet)
    parts = ranks.gather((found.labels.cpu().numpy(), found.cosines[:, 0].cpu().numpy()))
    clusters, cosines = (np.concatenate(each) for each in zip(*parts, strict=True))
    return clusters, cosines


def cosines_with_centers(features: Tensor, labels: Ints) -> NDArray[np.float32]:
    """Cosine of each unit row [N, D] with the sum of the rows of its cluster `labels` [N]."""
    where = torch.from_numpy(labels).to(features.device)
    sums = features.new_zeros((int(labels.max()) + 1, features.shape[1])).index_add_(0, where, features)
    centers = torch.nn.functional.normalize(sums, dim=1)
    cosines = [
        (part * centers[place]).sum(dim=1) for part, place in zip(features.split(8192), where.split(8192), strict=True)
    ]
    found: NDArray[np.float32] = torch.cat(cosines).cpu().numpy()
    return found


def _labelled(clusters: Ints, cosines: NDArray[np.float32], usable: NDArray[np.bool_], min_size: int) -> Labelled:
    """The labels of clusters [N, L] that have `min_size` pictures that are usable [N], by their first pictures."""
    own = clusters[:, 0]
    sizes = np.bincount(own[usable], minlength=int(clusters.max()) + 1)
    kept = usable & (sizes[own] >= min_size)
    labels = np.full(len(sizes), -1)
    labels[own[kept]] = first_seen(own[kept])
    given = labels[clusters]
    given[~kept] = -1
    return Labelled(given, cosines, int(labels.max(initial=-1)) + 1)
