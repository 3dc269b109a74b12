"""Checkpoint directories of a run: which are complete, which are sound, which are kept."""

import logging
import shutil
import stat
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter

from dist_train.data.aligner import Aligner
from dist_train.data.manifest import MAX_CLASSES, MAX_SIDE_PX
from dist_train.errors import UserError, WorkError
from dist_train.run_files import BEST_NAME, CHECKPOINTS_NAME, METADATA_NAME, PROGRESS_NAME
from dist_train.runtime.files import first_fault, plain_name, read_bounded
from dist_train.runtime.written import remove_temporaries, write_json

logger = logging.getLogger(__name__)

READ_BYTES = 1 << 22
_MAX_LISTING = 64 << 20  # bytes of a list of checksums
_MAX_BEST = 1 << 12  # bytes of the note which checkpoint is the best
_MOST = 1 << 62  # of what is counted
_MOST_RANKS = 1 << 16


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands, and on what data.

    Attributes:
        step: optimizer steps done.
        position: place in the sample order, in samples over all ranks.
        image_size: side of the pictures in pixels.
        num_classes: classes of the head.
        data_digest: digest of the set's manifest.
        aligner: what placed the faces of the set's pictures; None where that is unknown.
    """

    step: Annotated[int, Field(ge=0, lt=_MOST)]
    position: Annotated[int, Field(ge=0, lt=_MOST)]
    image_size: Annotated[int, Field(ge=1, le=MAX_SIDE_PX)]
    num_classes: Annotated[int, Field(ge=1, le=MAX_CLASSES)]
    data_digest: str
    aligner: Aligner | None = None


@dataclass(frozen=True, slots=True)
class _Checksums:
    """What `checksums-RANK.json` holds: of how many ranks it is one, and size and CRC-32 of each file."""

    ranks: Annotated[int, Field(ge=1, le=_MOST_RANKS)]
    files: dict[str, tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]]


@dataclass(frozen=True, slots=True)
class _Best:
    """What `best.json` holds; a score that is not a number would be above and below no other."""

    step: Annotated[int, Field(ge=0, lt=_MOST)]
    score: Annotated[float, Field(allow_inf_nan=False)]


_PROGRESS = TypeAdapter(Progress)
_BEST = TypeAdapter(_Best)
_CHECKSUMS = TypeAdapter(_Checksums)


def committed_checkpoints(run_dir: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    return sorted(path for path in (run_dir / CHECKPOINTS_NAME).glob("step-*") if _is_committed(path))


def _is_committed(checkpoint: Path) -> bool:
    """Whether a directory was a complete checkpoint; also where it cannot be read now, as `damage` will say."""
    try:
        return (checkpoint / METADATA_NAME).exists()
    except OSError:
        return True


def write_progress(checkpoint: Path, progress: Progress) -> None:
    """Put `progress` into a checkpoint's directory."""
    body = asdict(progress)
    if progress.aligner is None:
        del body["aligner"]
    write_json(checkpoint / PROGRESS_NAME, body)


def read_progress(checkpoint: Path) -> Progress:
    """The progress that `checkpoint` was written at.

    Raises:
        WorkError: missing or damaged.
    """
    try:
        return _PROGRESS.validate_json(read_bounded(checkpoint / PROGRESS_NAME, _MAX_LISTING), strict=True)
    except (OSError, ValueError) as error:
        raise WorkError(
            f"checkpoint {checkpoint}: {PROGRESS_NAME} is damaged ({first_fault(error)}); remove this checkpoint"
        ) from error


def check_same_data(checkpoint: Path, found: Progress, image_size: int, num_classes: int, data_digest: str) -> None:
    """See that a checkpoint was made on the data that are there now.

    Raises:
        UserError: it was not; says what differs, key by key.
    """
    now = {"image_size": image_size, "num_classes": num_classes, "data_digest": data_digest}
    before = asdict(found)
    changed = [f"{key}: {before[key]} -> {value}" for key, value in now.items() if before[key] != value]
    if changed:
        raise UserError(
            f"checkpoint {checkpoint} was made on other data than data.path holds now:\n  "
            + "\n  ".join(changed)
            + "\nbring that set back, or start a new run in another run_dir"
        )


def write_checksums(checkpoint: Path, rank: int, world_size: int) -> Path:
    """Write size and CRC-32 of the files that `rank` wrote into `checkpoint`, and of `.metadata` on rank 0.

    Each rank reads back its own files, so that the work is split and what is checked is what the disk returned.
    """
    names = sorted(path.name for path in checkpoint.glob(f"__{rank}_*"))
    if rank == 0:
        names += [METADATA_NAME, PROGRESS_NAME]
    sums = {name: [(checkpoint / name).stat().st_size, _crc32(checkpoint / name)] for name in names}
    listing = checksums_path(checkpoint, rank)
    write_json(listing, {"ranks": world_size, "files": sums})
    return listing


def checksums_path(checkpoint: Path, rank: int) -> Path:
    """Where the checksums of `rank`'s files are; it exists once they are all written."""
    return checkpoint / f"checksums-{rank}.json"


def failure_path(checkpoint: Path, rank: int) -> Path:
    """A mark that `rank` puts there when it cannot write its checksums."""
    return checkpoint / f"failed-{rank}"


def damage(checkpoint: Path, part: int = 0, parts: int = 1) -> list[str]:
    """What is wrong with a checkpoint's files, a line each; empty when it is sound.

    Args:
        checkpoint: its directory.
        part: which share of the files to read, of `parts`, so that ranks may divide the work.
        parts: how many shares there are.
    """
    try:
        listings = sorted(path for path in checkpoint.iterdir() if path.match("checksums-*.json"))
    except OSError as error:
        return [f"{checkpoint.name} cannot be read: {first_fault(error)}"]
    if not listings:
        return ["no checksums"]
    sums: dict[str, tuple[int, int]] = {}
    ranks = 0
    for listing in listings:
        try:
            body = _CHECKSUMS.validate_json(read_bounded(listing, _MAX_LISTING), strict=True)
            sums |= {plain_name(name, listing.name): entry for name, entry in body.files.items()}
        except UserError as error:
            return [str(error)]
        except (OSError, ValueError) as error:
            return [f"{listing.name} is not a list of checksums ({first_fault(error)})"]
        ranks = body.ranks
    missing = {checksums_path(checkpoint, rank) for rank in range(ranks)} - set(listings)
    wrong = [f"{path.name} is missing" for path in sorted(missing)]
    for name, (size, crc) in sorted(sums.items())[part::parts]:
        try:
            fault = _fault(checkpoint / name, size, crc)
        except FileNotFoundError:
            fault = "is missing"
        except OSError as error:
            fault = f"cannot be read: {first_fault(error)}"
        if fault is not None:
            wrong.append(f"{name} {fault}")
    return wrong


def _fault(path: Path, size: int, crc: int) -> str | None:
    """What is wrong with a file that should have `size` bytes and the CRC-32 `crc`; None: nothing.

    Raises:
        OSError: it cannot be read.
    """
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        return "is a link or a device, expected a file; copy linked files with cp -rL"
    if status.st_size != size:
        return f"has {status.st_size} bytes, expected {size}"
    return None if _crc32(path) == crc else "has another checksum than when it was written"


def read_best(run_dir: Path) -> tuple[int, float] | None:
    """Step and score of the best checkpoint so far; None before the first evaluation, or where it is not there."""
    try:
        best = _BEST.validate_json(read_bounded(run_dir / CHECKPOINTS_NAME / BEST_NAME, _MAX_BEST), strict=True)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        reason = first_fault(error)
        logger.warning("%s of %s cannot be read (%s); the next evaluation writes it anew", BEST_NAME, run_dir, reason)
        return None
    there = _is_committed(run_dir / CHECKPOINTS_NAME / checkpoint_name(best.step))
    return (best.step, best.score) if there else None


def write_best(run_dir: Path, step: int, score: float) -> None:
    """Record that the checkpoint of `step` is the best so far; `prune` will keep it. A full disk is a warning."""
    path = run_dir / CHECKPOINTS_NAME / BEST_NAME
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"step": step, "score": score})
    except OSError as error:
        logger.warning("%s: cannot be written (%s); step %d is not marked as the best", path, error.strerror, step)


def prune(run_dir: Path, keep: int) -> list[Path]:
    """Take all but the newest `keep` checkpoints and the best one out of the count.

    Returns:
        What they are called now, for `remove_pruned`: gigabytes take a while to free.
    """
    best = read_best(run_dir)
    kept = None if best is None else checkpoint_name(best[0])
    old = [path for path in committed_checkpoints(run_dir)[:-keep] if path.name != kept]
    # Renamed first: a removal that is cut off must not leave something that looks complete.
    return [path.replace(path.with_name(f".removing-{path.name}")) for path in old]


def remove_pruned(doomed: list[Path]) -> None:
    """Remove what `prune` has renamed; what cannot be removed is left to the next start of the run."""
    for path in doomed:
        shutil.rmtree(path, ignore_errors=True)


def set_aside_newer(run_dir: Path, checkpoint: Path | None) -> None:
    """Rename what is newer than the checkpoint that a run goes on from, all where it is None, since it is damaged.

    In its place it would keep its step from being written, and be the newest that `prune` keeps. As e.g.
    `damaged-step-00001000` it is read, counted and removed by nobody but its owner. Only the run that holds the
    directory may call this.

    Raises:
        UserError: the file system refuses.
    """
    home = run_dir / CHECKPOINTS_NAME
    for path in sorted(home.glob("step-*")):  # also one that has lost its metadata: no other can take its name
        if not path.is_dir() or (checkpoint is not None and path.name <= checkpoint.name):
            continue
        aside, number = home / f"damaged-{path.name}", 1
        while aside.exists():
            number += 1
            aside = home / f"damaged-{path.name}-{number}"
        try:
            path.replace(aside)
        except OSError as error:
            raise UserError(
                f"checkpoint {path} is damaged and cannot be renamed to {aside.name}: {first_fault(error)}; move it to "
                "another directory"
            ) from error
        logger.warning("checkpoint %s is kept as %s, which no run reads or removes", path, aside.name)


def remove_leftovers(run_dir: Path) -> None:
    """Remove what saves and removals that were cut off have left. Nobody may be writing there."""
    for path in (run_dir / CHECKPOINTS_NAME).glob(".*-step-*"):
        shutil.rmtree(path, ignore_errors=True)
    remove_temporaries(run_dir / CHECKPOINTS_NAME)
    remove_temporaries(run_dir)


def checkpoint_name(step: int) -> str:
    """Directory name of the checkpoint at `step`."""
    return f"step-{step:08d}"


def _crc32(path: Path) -> int:
    crc, buffer = 0, memoryview(bytearray(READ_BYTES))  # one: each new one would be memory that the system clears
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            crc = zlib.crc32(buffer[:count], crc)
    return crc
