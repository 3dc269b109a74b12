"""Verification sets in InsightFace's `.bin` form, made of a list of pairs and a set of aligned faces.

Every sample of a set that `headcount prep align` made says in its `.json` which photo it is from, and `rejects.parquet`
which photos are not in it and why. So each photo of the list is in the set, rejected, or unknown to it.
"""

import csv
import io
import logging
import pickle
import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from dist_train.data.manifest import load_manifest
from dist_train.data.pair_list import Pair
from dist_train.data.photos import Missing, PhotoSearch, Sample, read_missing
from dist_train.data.reader import ImageSet, SampleReader
from dist_train.data.shards import BadSampleError
from dist_train.embed.table import rejects_path
from dist_train.errors import UserError, WorkError
from dist_train.runtime.written import written_output

logger = logging.getLogger(__name__)

_OPEN_SHARDS = 64
_PICKLE_PROTOCOL = 3  # the first with bytes; read by every Python 3


class PairsMade(NamedTuple):
    """The outcome of `make_pairs`.

    Attributes:
        pairs: the pairs that were written, in the order of the list.
        asked: number of pairs in the list.
        missing: photos of the list that have no picture in the set.
    """

    pairs: list[Pair]
    asked: int
    missing: dict[str, Missing]

    def reasons(self) -> Counter[str]:
        """Number of missing photos by reason."""
        return Counter(each.reason for each in self.missing.values())


def make_pairs(pairs: Sequence[Pair], directory: Path, out: Path) -> PairsMade:
    """Write the pairs whose photos are both in the set, in the order of the list; name the missing photos beside them.

    Memory grows with the number of photos in the list, not with their pictures nor with the set.

    Args:
        pairs: the pairs of a list.
        directory: the directory of the set.
        out: the `.bin` file; photos without a picture go to `OUT.rejects.csv`.

    Raises:
        UserError: the set does not name its photos, a photo of the list could be any of several, or one kind has no
            pair left.
        WorkError: the set is damaged, or the output cannot be written.
    """
    manifest = load_manifest(directory)
    reader = SampleReader([ImageSet(str(directory), manifest)], "label", _OPEN_SHARDS)
    try:
        wanted = dict.fromkeys(photo for pair in pairs for photo in (pair.left, pair.right))
        found = _find(wanted, directory, reader, [shard.samples for shard in manifest.shards])
        there = {photo: place for photo, place in found.items() if isinstance(place, Sample)}
        kept = [pair for pair in pairs if pair.left in there and pair.right in there]
        missing = {photo: place for photo, place in found.items() if isinstance(place, Missing)}
        made = PairsMade(kept, len(pairs), missing)
        _check_kinds(made, directory)
        _write_missing(missing, rejects_path(out))
        places = (there[photo] for pair in kept for photo in (pair.left, pair.right))
        write_bin(out, (_picture(reader, place) for place in places), [pair.same for pair in kept])
    finally:
        reader.close()
    return made


def write_bin(path: Path, pictures: Iterable[bytes], same: Sequence[bool]) -> None:
    """Write a verification set: a pickle of (encoded pictures, booleans), one picture in memory at a time.

    Raises:
        WorkError: it cannot be written.
    """
    with written_output(path) as file:
        file.write(pickle.PROTO + bytes([_PICKLE_PROTOCOL]) + pickle.EMPTY_LIST + pickle.MARK)
        for picture in pictures:
            file.write(pickle.BINBYTES + struct.pack("<I", len(picture)))
            file.write(picture)
        flags = b"".join(pickle.NEWTRUE if flag else pickle.NEWFALSE for flag in same)
        file.write(pickle.APPENDS + pickle.EMPTY_LIST + pickle.MARK + flags + pickle.APPENDS)
        file.write(pickle.TUPLE2 + pickle.STOP)


def _picture(reader: SampleReader, place: Sample) -> bytes:
    try:
        return reader.read(place.shard, place.sample).image.tobytes()
    except BadSampleError as error:
        raise WorkError(f"{reader.name(place.shard)}: {place.source}: {error}; the set changed meanwhile") from error


def _check_kinds(made: PairsMade, directory: Path) -> None:
    for kind, name in ((True, "the same person"), (False, "two people")):
        if not any(pair.same is kind for pair in made.pairs):
            told = [f"{count} photos: {reason}" for reason, count in made.reasons().most_common()]
            first = next((f", the first: {photo!r}" for photo in made.missing), "")
            raise UserError(
                f"no pair of {name} is left of {made.asked} pairs with set {directory} "
                f"({', '.join(told) or 'the list has none'}{first}); both kinds are needed: nothing was written"
            )


def _write_missing(missing: dict[str, Missing], path: Path) -> None:
    if not missing:
        path.unlink(missing_ok=True)  # left by an earlier call
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "reason", "detail"])
    writer.writerows([photo, place.reason, place.detail] for photo, place in missing.items())
    with written_output(path) as file:
        file.write(text.getvalue().encode("utf-8", "backslashreplace"))


def _find(
    wanted: Iterable[str], directory: Path, reader: SampleReader, samples: Sequence[int]
) -> dict[str, Sample | Missing]:
    """The place of each wanted photo in the set, or the reason why it has none."""
    search = PhotoSearch(wanted)
    named, damaged = 0, ""
    for shard, count in enumerate(samples):
        for sample in range(count):
            try:
                record = reader.read(shard, sample, with_record=True).record or {}
            except BadSampleError as error:
                damaged = damaged or f"{reader.name(shard)}: {reader.key(shard, sample)}: {error}"
                continue
            if isinstance(source := record.get("source"), str):
                named += 1
                search.offer(Sample(source, shard, sample))
    if damaged:
        logger.warning("set %s has damaged samples, which cannot be used, the first: %s", directory, damaged)
    if not named:
        raise UserError(
            f"set {directory}: none of its {sum(samples)} samples names the photo that it is from (`source` in its "
            ".json); expected a set that `headcount prep align` made without --keep"
        )
    for missing in read_missing(directory):
        search.offer(missing)
    return search.found()
