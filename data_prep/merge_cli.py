"""`headcount prep merge`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_prep.merge.sameness import Sameness
from dist_train.runtime.terminal import echo

if TYPE_CHECKING:
    from data_prep.merge.job import Merge


def merge(
    sets: Annotated[
        list[Path], typer.Argument(metavar="SET", exists=True, file_okay=False, help="two or more sets of shards")
    ],
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", file_okay=False, help="directory of the new set; an unfinished merge in it is continued"
        ),
    ],
    identities: Annotated[
        Sameness,
        typer.Option(
            help="same-name: identities of one name are one; distinct: never, and a name that was there before gets "
            "the set's name in front"
        ),
    ],
    label_key: Annotated[
        str, typer.Option(help="key of the label in the .json of samples that have no .cls")
    ] = "label",
    workers: Annotated[
        int | None, typer.Option(min=1, help="number of processes; by default one for each core")
    ] = None,
    any_aligner: Annotated[
        bool, typer.Option("--any-aligner", help="join also sets whose faces were aligned by different detectors")
    ] = False,
) -> None:
    """Make one set of several, whose pictures keep their bytes.

    Identities of the first set keep their labels and names; those that only a later set has follow in their order. So a
    run on the first set can go on with the new one. There is no default for --identities, because names do not say
    whether they are the same people: folders named by people do, the numbers of a .rec do not. A set without
    identities.parquet has no names, and goes with distinct only.

    The command can be stopped at any moment; the same command continues where it was. Shards of the first set are
    linked where the file system can do it, so that they take no room; removing that set later does no harm. Keys of
    pictures of the other sets begin with eight digits of their set's digest, so that every key stays the only one.

    Examples:

      headcount prep merge sets/staff sets/visitors sets/all --identities same-name

      headcount prep merge sets/ms1mv3 sets/glint360k sets/both --identities distinct
    """
    from data_prep.job.progress import StageBars
    from data_prep.merge.job import merge_sets

    cores = len(os.sched_getaffinity(0))
    try:
        done = merge_sets(sets, out, identities, label_key, workers or cores, StageBars(), any_aligner)
    except KeyboardInterrupt:
        echo(f"{out} is not complete; the same command goes on where it was", err=True)
        raise
    echo(_told(out, done, identities))


def _told(out: Path, done: "Merge", sameness: Sameness) -> str:
    manifest = done.manifest
    identities, shards = manifest.num_classes, len(manifest.shards)
    lines = [f"{out}: {manifest.samples:,} pictures of {identities:,} identities in {shards:,} shards"]
    meant = "as in sets before" if sameness is Sameness.SAME_NAME else "written with the set's name in front"
    notes = [f", {met:,} of the names {meant}" if met else "" for met in done.joined.met]
    notes[0] = ", which keep their labels"
    for source, note in zip(done.sources, notes, strict=True):
        classes, samples = source.manifest.num_classes, source.manifest.samples
        lines.append(f"  {source.name}: {samples:,} pictures of {classes:,} identities{note}")
    if done.left_out:
        lines.append(f"left out: {done.left_out:,} samples that cannot be used, see above")
    return "\n".join(lines)
