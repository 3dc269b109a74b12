"""`headcount data`: look at a set and check it."""

import os
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Look at a set of shards, and check it.",
    no_args_is_help=True,
    epilog="Examples: `headcount data inspect sets/glyphs/train --sheet samples.png`, "
    "`headcount data verify sets/glyphs/train`.",
)

_SetArgument = Annotated[Path, typer.Argument(metavar="SET", help="directory of the set")]
_LabelKey = Annotated[str, typer.Option(help="key of the label in samples that have a .json and no .cls")]
_SHOWN = 20  # problems that are printed; the rest are counted


@app.command()
def inspect(
    path: _SetArgument,
    sheet: Annotated[Path | None, typer.Option(help="write random samples as one picture, .png or .jpg")] = None,
    rows: Annotated[int, typer.Option(min=1, max=100, help="of the sheet")] = 8,
    columns: Annotated[int, typer.Option(min=1, max=100, help="of the sheet")] = 12,
    seed: Annotated[int, typer.Option(min=0, help="which samples the sheet shows")] = 0,
    label_key: _LabelKey = "label",
) -> None:
    """Print counts, sizes and the histogram of labels; draw a sheet of samples."""
    from dist_train.data import inspect as looking
    from dist_train.data.sources import open_manifest

    manifest = open_manifest(str(path), label_key)
    typer.echo(looking.describe(path, manifest, label_key))
    if sheet is not None:
        looking.save_sheet(looking.sheet(path, manifest, rows, columns, seed, label_key), sheet)
        typer.echo(f"\nsheet      {sheet}")


@app.command()
def verify(
    path: _SetArgument,
    workers: Annotated[int, typer.Option(min=1, help="shards checked at a time")] = os.cpu_count() or 1,
    decode: Annotated[bool, typer.Option(help="decode every picture, too")] = True,
    label_key: _LabelKey = "label",
) -> None:
    """Compare every shard with the manifest: size, checksum, index, labels, pictures. Exit status 1 if any is wrong."""
    from tqdm import tqdm

    from dist_train.data.sources import open_manifest
    from dist_train.data.verify import verify_set
    from dist_train.errors import WorkError

    manifest = open_manifest(str(path), label_key)
    found = 0
    with tqdm(total=manifest.samples, unit="img", unit_scale=True, desc="verify") as bar:
        for verdict in verify_set(path, manifest, workers, decode, label_key):
            bar.update(verdict.samples)
            for problem in verdict.problems:
                found += 1
                if found <= _SHOWN:
                    where = problem.shard if problem.key is None else f"{problem.shard}, sample {problem.key}"
                    bar.write(f"{where}: {problem.reason}")
    if found:
        more = f", of which {_SHOWN} are shown" if found > _SHOWN else ""
        raise WorkError(f"set {path}: {found} problems{more}; write the shards named above again")
    typer.echo(f"{path}: {manifest.samples:,} images in {len(manifest.shards):,} shards, all as the manifest says")
