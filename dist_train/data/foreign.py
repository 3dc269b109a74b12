"""Shards that others wrote: indexes for tars that have none, and a manifest for a directory of tars."""

import fcntl
import hashlib
import logging
import os
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from tqdm import tqdm

from dist_train.data.index import Member, format_index
from dist_train.data.manifest import MANIFEST_NAME, Manifest, Shard, load_manifest
from dist_train.data.opencv import decode
from dist_train.data.shards import BadSampleError, OpenShard, RawSample
from dist_train.errors import UserError, WorkError

log = logging.getLogger(__name__)

_BLOCK = 1 << 22
_LOCK_S = 3600.0  # an hour: another process may be reading a large set for its first manifest


def scan_tar(path: Path) -> list[list[Member]]:
    """Members of each sample of a tar, by WebDataset's rule: neighbours that share a name up to its first dot.

    A tar that is cut off gives the samples before the cut.

    Raises:
        UserError: not a tar.
    """
    samples: list[list[Member]] = []
    previous = None
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            for info in _members(tar, path):
                folder, _, base = info.name.rpartition("/")
                stem, dot, extension = base.partition(".")
                if not info.isfile() or not dot or not stem:
                    continue
                if info.offset_data + info.size > size:
                    log.warning("shard %s is cut off: %s is incomplete and left out", path, info.name)
                    break
                if (folder, stem) != previous:
                    samples.append([])
                    previous = (folder, stem)
                # The index separates its words by blanks: names that have some are written as in an address.
                name = quote(info.name, safe="/!$&'()*+,;=:@~") if set(info.name) & set(" \t\n\r%") else info.name
                samples[-1].append(Member(extension.lower().replace(" ", "_"), info.offset_data, info.size, name))
    except tarfile.TarError as error:
        raise UserError(f"shard {path}: not an uncompressed tar: {error}") from error
    return samples


def _members(tar: tarfile.TarFile, path: Path) -> Iterator[tarfile.TarInfo]:
    try:
        yield from tar
    except tarfile.ReadError as error:
        log.warning("shard %s is cut off at byte %d: %s", path, tar.offset, error)
        return
    # `tarfile` takes a header that is cut off or damaged for the end, and says nothing.
    with path.open("rb") as file:
        file.seek(tar.offset)
        if any(file.read(tarfile.BLOCKSIZE)):
            log.warning("shard %s is cut off or damaged at byte %d: no tar header", path, tar.offset)


def write_index(tar: Path, index: Path) -> None:
    """Index a tar; the file appears by rename, so that several processes may do it at once."""
    index.parent.mkdir(parents=True, exist_ok=True)
    temporary = index.with_name(f".{index.name}.{os.getpid()}.tmp")
    temporary.write_text(format_index(scan_tar(tar)), encoding="utf-8")
    temporary.replace(index)


def adopt_set(directory: Path, label_key: str) -> Manifest:
    """Index the tars in `directory` and write a manifest for them, once; other processes wait for the one that does.

    Raises:
        UserError: no tars, none with labels, pictures that are not square, or a directory that cannot be written.
    """
    tars = sorted(directory.glob("*.tar"))
    if not tars:
        raise UserError(
            f"dataset {directory}: neither {MANIFEST_NAME} nor *.tar in it; make a set with `headcount prep`, or "
            "correct data.path"
        )
    if not os.access(directory, os.W_OK):
        raise UserError(f"dataset {directory}: no {MANIFEST_NAME}, and no right to write one; copy or link the shards")
    with locked(directory / ".manifest.lock", _LOCK_S):
        if (directory / MANIFEST_NAME).exists():
            return load_manifest(directory)
        manifest = _survey(tars, label_key)
        manifest.save(directory)
        return manifest


def _survey(tars: list[Path], label_key: str) -> Manifest:
    shards, last_label, side, reason, by_record = [], -1, 0, "no samples", False
    for tar in tqdm(tars, desc="first use: indexing", unit="shard"):
        index = tar.with_suffix(".idx")
        write_index(tar, index)
        samples = index.read_bytes().count(b"\n") - 1
        shard = Shard(tar.name, samples, tar.stat().st_size, sha256_of(tar))
        shards.append(shard)
        opened = OpenShard(tar, index, shard)
        for sample in range(samples):
            try:
                raw: RawSample = opened.read(sample, label_key)
                side = side or decode(raw.image).shape[0]
                last_label = max(last_label, raw.label)
                by_record |= all(member.extension != "cls" for member in opened.members(sample))
            except BadSampleError as error:
                reason = f"{opened.key(sample)} in {tar.name}: {error}"
        opened.close()
    if last_label < 0:
        raise UserError(
            f"dataset {tars[0].parent}: no sample with a square picture and a label in {len(tars)} tars, e.g. "
            f"{reason}; labels are .cls files or data.label_key={label_key} in .json files"
        )
    return Manifest(side, last_label + 1, tuple(shards), label_key if by_record else None)


def sha256_of(path: Path) -> str:
    """Hexadecimal digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def locked(path: Path, timeout_s: float) -> Iterator[None]:
    """Hold the lock file `path`; it is free again when its holder ends, however it ends.

    Raises:
        WorkError: another process held it for `timeout_s` seconds.
    """
    deadline = time.monotonic() + timeout_s
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise WorkError(f"waited {timeout_s:g} s for another process to release {path}") from None
                time.sleep(0.05)
        yield
