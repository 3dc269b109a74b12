"""`headcount prep split`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dist_train.runtime.terminal import echo

if TYPE_CHECKING:
    from data_prep.split.job import Split


def split(
    source: Annotated[
        Path, typer.Argument(metavar="SET", exists=True, file_okay=False, help="set of shards without roles")
    ],
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", file_okay=False, help="directory for the parts; an unfinished split in it is continued"
        ),
    ],
    identities: Annotated[
        str, typer.Option(metavar="N|P%", help="identities that are held out: a number, or a share of all, as 10%")
    ],
    by_time: Annotated[
        str | None,
        typer.Option(
            metavar="FIELD",
            help="entry of the samples' .json with a number or a date: the earliest pictures are the gallery's; by "
            "default the gallery's are drawn by the seed",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="seed of every choice; the same set and seed give the same bytes")
    ] = 0,
    gallery: Annotated[int, typer.Option(min=1, help="pictures of each held-out identity in the gallery")] = 1,
    pairs: Annotated[int, typer.Option(min=20, help="number of pairs in verification.bin")] = 6000,
    label_key: Annotated[
        str, typer.Option(help="key of the label in the .json of samples that have no .cls")
    ] = "label",
    workers: Annotated[
        int | None, typer.Option(min=1, help="number of processes; by default one for each core")
    ] = None,
) -> None:
    """Hold out identities of a set, to measure on people that were not trained on.

    OUT/train has the other identities, with labels from 0. OUT/heldout has a gallery and probes, as their .json say.
    OUT/verification.bin has pairs of the latter, half of them of one person. Pictures keep their bytes, names stay in
    identities.parquet. Who is held out depends on names and --seed, not on shards or labels; identities with no more
    pictures than --gallery stay in train.

    The command can be stopped at any moment; the same command continues where it was.

    Examples:

      headcount prep split sets/faces sets/parted --identities 10%

      headcount prep split sets/passes sets/parted --identities 500 --by-time taken --gallery 2
    """
    from data_prep.job.progress import StageBars
    from data_prep.split.choice import parse_wanted
    from data_prep.split.job import split_set
    from data_prep.split.options import SplitOptions

    options = SplitOptions(parse_wanted(identities), by_time, seed, gallery, pairs, label_key)
    try:
        done = split_set(source, out, options, workers or len(os.sched_getaffinity(0)), StageBars())
    except KeyboardInterrupt:
        echo(f"{out} is not complete; the same command goes on where it was", err=True)
        raise
    echo("\n".join(_told(out, done, pairs, gallery)))


def _told(out: Path, done: "Split", asked: int, gallery: int) -> list[str]:
    known, probes = done.gallery_pictures, done.probe_pictures
    lines = [
        f"{out / 'train'}: {done.train_pictures:,} pictures of {done.train_identities:,} identities",
        f"{out / 'heldout'}: {known + probes:,} pictures of {done.heldout_identities:,} identities, {known:,} in the "
        f"gallery, {probes:,} probes",
        f"{out / 'verification.bin'}: {done.pairs:,} pairs, half of them of one identity; {_folds(done)}",
    ]
    if done.pairs < asked:
        lines.append(f"  {asked:,} pairs were asked for: the held-out pictures give no more of both kinds")
    if done.kept_back:
        held = "picture" if gallery == 1 else "pictures"
        lines.append(f"identities with {gallery} {held} or fewer, which stay in train: {done.kept_back:,}")
    if done.empty:
        lines.append(f"identities of the set without a picture, which are in neither part: {done.empty:,}")
    if done.left_out:
        lines.append(f"left out: {done.left_out:,} samples that cannot be used, e.g. {done.left_out_example}")
    return lines


def _folds(done: "Split") -> str:
    if not done.folded:
        return "too few for ten folds with both kinds in each"
    if done.disjoint:
        return "no identity is in two of the ten folds"
    return "folds share identities, of which at least 20 would be needed"
