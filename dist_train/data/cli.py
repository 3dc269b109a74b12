"""`headcount data`: look at a set, check it, and measure how fast it is read."""

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dist_train.runtime.terminal import echo, printable

app = typer.Typer(
    help="Look at a set of shards, check it, and measure how fast it is read.",
    no_args_is_help=True,
    epilog="Examples: `headcount data inspect sets/glyphs/train --sheet samples.png`, "
    "`headcount data verify sets/glyphs/train`, `headcount data bench sets/glyphs/train --workers 1 --workers 2`.",
)

_SetArgument = Annotated[Path, typer.Argument(metavar="SET", help="directory of the set")]
_LabelKey = Annotated[str, typer.Option(help="key of the label in the .json of samples that have no .cls")]


class Backend(StrEnum):
    """Who decodes and augments."""

    OPENCV = "opencv"
    DALI = "dali"


_SHOWN = 20  # problems that are printed; the rest are counted


@app.command()
def inspect(
    path: _SetArgument,
    sheet: Annotated[
        Path | None, typer.Option(help="picture file, .png or .jpg, for a sheet of random samples")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, max=100, help="rows of the sheet")] = 8,
    columns: Annotated[int, typer.Option(min=1, max=100, help="columns of the sheet")] = 12,
    seed: Annotated[int, typer.Option(min=0, help="seed that chooses the samples of the sheet")] = 0,
    label_key: _LabelKey = "label",
) -> None:
    """Print counts, sizes and the histogram of labels; draw a sheet of samples."""
    from dist_train.data import inspect as looking
    from dist_train.data.sources import open_manifest

    manifest = open_manifest(str(path), label_key)
    echo(looking.describe(path, manifest, label_key))
    if sheet is not None:
        looking.save_sheet(looking.contact_sheet(path, manifest, rows, columns, seed, label_key), sheet)
        echo(f"\nsheet      {sheet}")


@app.command()
def verify(
    path: _SetArgument,
    workers: Annotated[int, typer.Option(min=1, help="how many shards are checked at a time")] = os.cpu_count() or 1,
    decode: Annotated[bool, typer.Option(help="whether every picture is decoded, too")] = True,
    label_key: _LabelKey = "label",
) -> None:
    """Compare every shard with the manifest: size, checksum, index, labels, pictures. Exit status 1 if any is wrong."""
    from dist_train.data.sources import open_manifest
    from dist_train.data.verify import verify_set
    from dist_train.errors import WorkError
    from dist_train.runtime.progress import progress_bar

    manifest = open_manifest(str(path), label_key)
    found = 0
    with progress_bar(total=manifest.samples, unit="img", unit_scale=True, desc="verify") as bar:
        for verdict in verify_set(path, manifest, workers, decode, label_key):
            bar.update(verdict.samples)
            for problem in verdict.problems:
                found += 1
                if found <= _SHOWN:
                    where = problem.shard if problem.key is None else f"{problem.shard}, sample {problem.key}"
                    bar.write(printable(f"{where}: {problem.reason}"))
    if found:
        more = f", of which {_SHOWN} are shown" if found > _SHOWN else ""
        raise WorkError(f"set {path}: {found} problems{more}; write the shards named above again")
    echo(f"{path}: {manifest.samples:,} images in {len(manifest.shards):,} shards, all as the manifest says")


@app.command()
def bench(
    path: Annotated[str, typer.Argument(metavar="SET", help="directory or address of the set")],
    workers: Annotated[
        list[int] | None,
        typer.Option(
            min=0,
            help="number of decoding processes to try, 0 for none; repeat; by default 0, 1, 2, 4 ... up to the cores",
        ),
    ] = None,
    backend: Annotated[
        list[Backend] | None, typer.Option(help="decoder to try; by default opencv, and dali where it is installed")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="pictures in a batch")] = 256,
    seconds: Annotated[
        float, typer.Option(min=0.1, help="seconds of measuring each backend and number of processes")
    ] = 5.0,
    augment: Annotated[
        bool, typer.Option(help="whether pictures are augmented: flip, rotation by 10 degrees, colour jitter of 0.2")
    ] = True,
    label_key: _LabelKey = "label",
) -> None:
    """Measure images/s in training order, by backend and number of workers, beside decoding alone on one core."""
    import importlib.util

    from dist_train.data.bench import USUAL, measure
    from dist_train.data.config import AugmentConfig, DataConfig

    cores = len(os.sched_getaffinity(0))
    counts = workers or [0, *(2**n for n in range(cores.bit_length()) if 2**n <= cores)]
    found = ["opencv", *(["dali"] if importlib.util.find_spec("nvidia.dali") else [])]
    config = DataConfig(path=path, label_key=label_key, augment=USUAL if augment else AugmentConfig(flip=0))
    names = [each.value for each in backend] if backend else found
    echo(f"{'':<14}{'workers':>8}{'images/s':>12}{'of decoding alone':>20}")
    alone = 0.0
    for speed in measure(config, batch_size, seconds, counts, names):
        alone = alone or speed.images_per_s
        share = f"{speed.images_per_s / alone:>19.0%}"
        echo(f"{speed.what:<14}{speed.workers:>8}{speed.images_per_s:>12,.0f}{share:>20}")
