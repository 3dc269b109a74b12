"""A new set without what was found to be wrong: pictures go, labels become one, all that stays keeps its bytes."""

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.merge.move import contents_of
from data_prep.merge.relabel import relabelled
from data_prep.shards import ShardWriter
from dist_train.clean.finding import Findings, read_exceptions, read_findings
from dist_train.clean.merges import joined
from dist_train.data.counters import Ints
from dist_train.data.identities import read_identities
from dist_train.data.index import read_index
from dist_train.data.manifest import IDENTITIES_NAME, Manifest, Shard, load_manifest, refuse_overlap
from dist_train.data.shards import BadSampleError
from dist_train.data.tar_samples import Sample, key_of
from dist_train.errors import UserError, WorkError
from dist_train.evaluate.sets import StoredSet
from dist_train.runtime.parquet import bounded_batches
from dist_train.runtime.progress import progress_bar
from dist_train.runtime.text import first_line, shown_name
from dist_train.runtime.written import MAKE_ROOM, write_failures, write_json, written, written_directory

SUMMARY_NAME = "cleaned.json"
_GONE = -1
# Of a table of identities, whose further columns may be anything: as much as one behind an address may have.
_ROW_BYTES = 4 << 10
_ALWAYS_BYTES = 64 << 20
_LONGEST = _ROW_BYTES // 4  # numbers in a list


@dataclass(frozen=True)
class Cleaned:
    """What became of a set.

    Attributes:
        source: digest of the set.
        findings: digest of the findings.
        struck_out: findings that were not applied.
        left_out: pictures by the kind of finding that says so; one with several counts for the first.
        joined: identities that became part of another.
        emptied: identities of which no picture stays.
        pictures: in the new set.
        identities: in it.
    """

    source: str
    findings: str
    struck_out: int
    left_out: dict[str, int]
    joined: int
    emptied: int
    pictures: int
    identities: int

    def __str__(self) -> str:
        gone = ", ".join(f"{count:,} {kind}" for kind, count in self.left_out.items()) or "none"
        lines = [
            f"{self.pictures:,} pictures of {self.identities:,} identities, with the bytes that they had",
            f"left out: {gone}",
            f"identities that became part of another: {self.joined:,}; without a picture now: {self.emptied:,}",
        ]
        if self.struck_out:
            lines.append(f"findings that were struck out: {self.struck_out:,}")
        if self.joined or self.emptied:
            lines.append("labels are numbered anew, in their old order; names stay")
        return "\n".join(lines)


def apply_findings(
    source: Path, findings_path: Path, out: Path, exceptions: Path | None, quiet: bool = False
) -> Cleaned:
    """Write the set at `source` to `out` without what the findings name; `out` appears complete, or not at all.

    Args:
        source: the set.
        findings_path: a `findings.parquet` of this set.
        out: directory of the new set; must not exist, or be empty.
        exceptions: list of findings that are not applied, as the sheet saves it.
        quiet: show no bar.

    Raises:
        UserError: findings or exceptions of something else, or an `out` that is in use or is the set.
        WorkError: the set is damaged, nothing would be left, or the disk is full.
    """
    manifest = load_manifest(source)
    refuse_overlap("OUT", out, source)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"OUT {out}: holds something already; use another directory")
    findings = read_findings(findings_path, manifest.digest, manifest.samples, manifest.num_classes)
    struck_out = read_exceptions(exceptions, findings) if exceptions else frozenset()
    with StoredSet(source) as samples:
        labels, _ = samples.labels_and_roles()
    gone, pairs = _asked(findings, struck_out, labels)
    counts = np.bincount(labels, minlength=manifest.num_classes)
    target = _targets(pairs, counts)
    stays = np.ones(len(labels), dtype=bool)
    stays[list(gone)] = False
    new_counts = np.bincount(target[labels[stays]], minlength=manifest.num_classes)
    if not stays.any():
        raise WorkError(f"OUT {out}: no picture would stay; strike out findings, or give other thresholds")
    # Classes that had no picture before were somebody's wish; they stay.
    kept = np.flatnonzero((new_counts > 0) | ((counts == 0) & (target == np.arange(len(target)))))
    dense = np.full(manifest.num_classes, _GONE)
    dense[kept] = np.arange(len(kept))
    new_labels = np.where(stays, dense[target[labels]], _GONE)
    merged = int((target != np.arange(len(target))).sum())
    cleaned = Cleaned(
        manifest.digest,
        findings.digest,
        len(struck_out),
        dict(Counter(gone.values())),
        merged,
        manifest.num_classes - len(kept) - merged,
        int(stays.sum()),
        len(kept),
    )
    with write_failures(f"set {out}", MAKE_ROOM), written_directory(out) as home:
        _write(home, source, manifest, labels, new_labels, kept, new_counts[kept], quiet)
        write_json(home / SUMMARY_NAME, asdict(cleaned))
    return cleaned


def _asked(findings: Findings, struck_out: frozenset[int], labels: Ints) -> tuple[dict[int, str], Ints]:
    """The pictures that go, each with the kind of finding that says so, and the pairs of labels that become one.

    Raises:
        UserError: a picture has another label in the set.
    """
    gone: dict[int, str] = {}
    pairs = []
    columns = (findings.table[name].to_pylist() for name in ("kind", "rows", "labels"))
    for number, (kind, rows, said) in enumerate(zip(*columns, strict=True)):
        if kind != "merge" and (found := labels[rows].tolist()) != said:
            raise UserError(
                f"findings, row {number}: says label {said[0]} of picture {rows[0]}, the set has {found[0]}; find them "
                "again"
            )
        if number in struck_out:
            continue
        if kind == "merge":
            pairs.append(said)
        else:
            gone.setdefault(rows[0], kind)
    return gone, np.array(pairs, dtype=np.int64).reshape(-1, 2)


def _targets(pairs: Ints, counts: Ints) -> Ints:
    """For each label the one that its pictures get: of those that are one, that with the most pictures [C]."""
    component = joined(pairs, len(counts))
    order = np.lexsort((np.arange(len(counts)), -counts, component))
    first = np.searchsorted(component[order], component, side="left")
    target: Ints = order[first]
    return target


def _write(
    home: Path, source: Path, manifest: Manifest, labels: Ints, new_labels: Ints, kept: Ints, counts: Ints, quiet: bool
) -> None:
    shards, start = [], 0
    with progress_bar(total=manifest.samples, unit="img", unit_scale=True, desc="clean", disable=quiet) as bar:
        for shard in manifest.shards:
            part = slice(start, start + shard.samples)
            if (new_labels[part] != _GONE).any():
                label_key = manifest.label_key or "label"
                shards.append(_move(source, shard, home / shard.name, labels[part], new_labels[part], label_key))
            start += shard.samples
            bar.update(shard.samples)
    with written(home / IDENTITIES_NAME) as file:
        pq.write_table(_identities(source, manifest, kept, counts), file)
    Manifest(manifest.image_size, len(kept), tuple(shards), aligner=manifest.aligner).save(home)


def _move(source: Path, shard: Shard, target: Path, labels: Ints, new_labels: Ints, label_key: str) -> Shard:
    tar = source / shard.name
    if mismatch := shard.mismatch(tar):
        raise WorkError(f"{tar}: {mismatch}; get the shard again, or write the set again")
    lines = read_index(tar.with_suffix(".idx"), shard.bytes)
    with tar.open("rb", buffering=0) as file, ShardWriter(target) as writer:
        for members, old, new in zip(lines, labels.tolist(), new_labels.tolist(), strict=True):
            if new != _GONE:
                sample = Sample(key_of(members[0].name), members)
                try:
                    contents = contents_of(file.fileno(), sample)
                except BadSampleError as error:
                    raise WorkError(f"{tar}: {shown_name(sample.key)}: {error}") from error
                writer.write_members(relabelled(sample, contents, (old, new), label_key, ""))
    return writer.shard


def _identities(source: Path, manifest: Manifest, kept: Ints, counts: Ints) -> pa.Table:
    """The table of identities for the labels that stay: all of its columns, with new labels and counts."""
    path = source / IDENTITIES_NAME
    if path.exists():
        read_identities(path, "name", manifest.num_classes)  # refuses what is none, before all of it is read
        table = _whole_table(path)
    else:
        every = np.arange(manifest.num_classes)
        table = pa.table({"label": every, "name": [str(label) for label in every]})
    rows = np.full(manifest.num_classes, _GONE)
    rows[table["label"].to_numpy()] = np.arange(table.num_rows)
    if (rows[kept] == _GONE).any():
        missing = int(kept[rows[kept] == _GONE][0])
        raise UserError(f"{path}: no row for label {missing}; write the set again")
    table = table.take(pa.array(rows[kept]))
    for name, values in (("label", np.arange(len(kept))), ("count", counts)):
        column = pa.array(values, pa.int64())
        at = table.column_names.index(name) if name in table.column_names else None
        table = table.append_column(name, column) if at is None else table.set_column(at, name, column)
    return table


def _whole_table(path: Path) -> pa.Table:
    """All columns of a table of identities, one after another: what each takes is known before the next is unpacked.

    Raises:
        UserError: damaged, or of more than 4 KiB a row.
    """
    try:
        metadata = pq.read_metadata(path)
        schema = metadata.schema.to_arrow_schema()
        most = _ALWAYS_BYTES + _ROW_BYTES * metadata.num_rows
        columns, size = [], 0
        for field in schema:
            batches = []
            for batch in bounded_batches(path, [field.name], _LONGEST, row_bytes=_ROW_BYTES):
                if (size := size + batch.nbytes) > most:
                    raise ValueError(f"more than {most:,} bytes in {metadata.num_rows:,} rows")
                batches.append(batch.column(0))
            columns.append(pa.chunked_array(batches, field.type))
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise UserError(
            f"{path}: cannot be read: {first_line(error)}; write it with columns of text, numbers or lists of numbers"
        ) from error
    return pa.table(columns, schema=schema)
