"""Looking through a set on disk: its embeddings, the test sets, what was found as a table and as a page."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from dist_train.clean.find import ForbiddenSet, Labelled, find_faults
from dist_train.clean.finding import KINDS, Findings, write_findings
from dist_train.clean.place import placed
from dist_train.clean.sheet import write_sheet
from dist_train.data.identities import read_identities
from dist_train.data.manifest import IDENTITIES_NAME, Manifest, load_manifest, refuse_overlap
from dist_train.embed.embedded import read_embedded
from dist_train.embed.table import EmbeddingFile
from dist_train.errors import UserError
from dist_train.evaluate.bin import read_bin
from dist_train.evaluate.embedded_set import EmbeddedSet, embed_set
from dist_train.evaluate.embeddings import embed_pictures
from dist_train.evaluate.judging import Judging
from dist_train.evaluate.models import Model
from dist_train.evaluate.pictures import decoding
from dist_train.evaluate.sets import StoredSet
from dist_train.runtime.ranks import Ranks
from dist_train.runtime.written import MAKE_ROOM, write_failures

logger = logging.getLogger(__name__)

FINDINGS_NAME, SHEET_NAME = "findings.parquet", "sheet.html"


class Asked(NamedTuple):
    """What to look through, and how.

    Attributes:
        path: of the set.
        embeddings: of its pictures, by `headcount embed`; None: the model embeds them.
        against: test sets, each a `.bin` or a set of shards.
        out: directory of the findings.
        certainty: share of right findings that thresholds are chosen for.
        thresholds: by kind, in place of the set's own.
    """

    path: Path
    embeddings: Path | None
    against: Sequence[Path]
    out: Path
    certainty: float
    thresholds: Mapping[str, float]


def look_through(asked: Asked, model: Model | None, how: Judging | None, ranks: Ranks) -> str | None:
    """Find what is wrong in a set, and write it down; a collective.

    Args:
        asked: what to look through.
        model: which embeds; None where embeddings are given and there are no test sets.
        how: the model as evaluations use it.
        ranks: the processes that share the work.

    Returns:
        What was found, for people, on rank 0; None on the others.

    Raises:
        UserError: no such set, one of a single identity, embeddings of another set or model.
        WorkError: a damaged picture, embeddings that are not finite, or the disk is full.
    """
    manifest = ranks.agree(lambda: _manifest(asked, model))
    with ExitStack() as stack:
        samples = ranks.agree(lambda: stack.enter_context(StoredSet(asked.path)))
        if asked.embeddings is None:
            if how is None:
                raise UserError("give --model RUN, or --embeddings FILE that `headcount embed` wrote")
            embedded = embed_set(asked.path, how)
        else:
            embedded = ranks.agree(lambda: _stored(asked, model, samples))
        tests = [_test_set(path, how, ranks, stack) for path in asked.against if how is not None]
        names = ranks.agree(lambda: _names(asked.path, manifest))
        about = {
            "path": str(asked.path),
            "digest": manifest.digest,
            "samples": manifest.samples,
            "identities": manifest.num_classes,
            "by": model.name if model is not None else str(asked.embeddings),
        }
        labelled = Labelled(embedded, names, samples.read, about)
        faults = find_faults(labelled, tests, asked.certainty, asked.thresholds, ranks)

        def write() -> str | None:
            if ranks.rank:
                return None
            told = summary(faults.findings)
            with write_failures(f"findings {asked.out}", MAKE_ROOM):
                asked.out.mkdir(parents=True, exist_ok=True)
            write_findings(asked.out / FINDINGS_NAME, faults.findings)
            page = asked.out / SHEET_NAME
            write_sheet(page, embedded.name, faults.findings, faults.cores, samples.read, told)
            return "\n".join([f"{asked.path}: {faults.findings.table.num_rows:,} findings", *told, str(page)])

        return ranks.agree(write)


def summary(findings: Findings) -> list[str]:
    """A line for each kind: how many, and by which threshold."""
    counts = Counter(findings.table["kind"].to_pylist())
    about, cut = findings.about, findings.about["thresholds"]
    least = about["cosine_of_duplicates"]
    words = {
        "outlier": "wrong labels: cosine to the own identity less that to the nearest other at most",
        "merge": "pairs of identities that are one: distance, 1 on average for one, at most",
        "duplicate": f"pictures that are there twice: cosine at least {least:.3f}, pixels alike by",
        "test": f"pictures of {', '.join(about['against']) or 'no test set'}: pixels alike by",
    }
    lines = []
    for kind in KINDS:
        value = "(none is sure enough)" if cut[kind] is None else f"{cut[kind]:.3f}"
        expected = about["expected"].get(kind)
        more = "" if expected is None else f"; about {expected:,.0f} are expected in all"
        if kind == "merge" and about["mixed"]:
            more += f"; {about['mixed']:,} labels are two people themselves and take no part"
        if kind != "test" or about["against"]:
            lines.append(f"{counts[kind]:>9,} {words[kind]} {value}{more}")
    return lines


def _manifest(asked: Asked, model: Model | None) -> Manifest:
    manifest = load_manifest(asked.path)
    refuse_overlap("--out", asked.out, asked.path)
    if manifest.num_classes < 2:
        raise UserError(f"set {asked.path}: has one identity; what is wrong in it shows only beside others")
    if asked.against and model is None:
        raise UserError("--against: give --model RUN, too: the test set's pictures are embedded by it")
    return manifest


def _stored(asked: Asked, model: Model | None, samples: StoredSet) -> EmbeddedSet:
    """The embeddings of a file, in the set's order."""
    if asked.embeddings is None:
        raise ValueError("no file of embeddings")
    if model is not None:
        file = EmbeddingFile(asked.embeddings)
        file.close()
        theirs, ours = file.description["model"]["sha256"], model.digest()
        if theirs != ours:
            raise UserError(
                f"--embeddings {asked.embeddings}: by a model {str(theirs)[:12]}, --model {model.name} is {ours[:12]}; "
                "give the model that made them"
            )
    return placed(read_embedded(asked.embeddings), samples)


def _test_set(path: Path, how: Judging, ranks: Ranks, stack: ExitStack) -> ForbiddenSet:
    """A test set's pictures, embedded; a collective."""
    if path.is_dir():
        samples = ranks.agree(lambda: stack.enter_context(StoredSet(path)))
        found = embed_set(path, how)
        return ForbiddenSet(found.name, found.features, samples.read)
    pairs = ranks.agree(lambda: read_bin(path))
    read = pairs.images.__getitem__
    name = f"test set {path}"
    load = decoding(read, how.image_size, name)
    size = len(pairs.images)
    embeddings = embed_pictures(how.embed, load, size, how.batch_size, flip=how.flip, name=name, ranks=ranks)
    return ForbiddenSet(pairs.name, embeddings.normalized(), read)


def _names(path: Path, manifest: Manifest) -> list[str | None]:
    """Names of the identities by label."""
    names: list[str | None] = [None] * manifest.num_classes
    if (path / IDENTITIES_NAME).exists():
        table = read_identities(path / IDENTITIES_NAME, "name", manifest.num_classes)
        for label, name in zip(table["label"].to_pylist(), table["name"].to_pylist(), strict=True):
            names[label] = name
    return names
