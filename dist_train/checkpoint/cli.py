"""`headcount checkpoint`: look into checkpoints; see `weights.cli` for taking weights out of them."""

from collections import defaultdict
from pathlib import Path
from typing import Annotated

import typer

from dist_train.run_files import CHECKPOINTS_NAME, METADATA_NAME
from dist_train.runtime.terminal import echo

app = typer.Typer(help="Inspect checkpoints; export their weights, or a mean of them.", no_args_is_help=True)

Where = Annotated[Path, typer.Argument(help="run directory, or one checkpoint in it")]


@app.command()
def inspect(where: Where) -> None:
    """Print what checkpoints hold, and whether their files are undamaged.

    Exit status 1 if one is damaged.

    Example:

      headcount checkpoint inspect runs/quickstart
    """
    from dist_train.checkpoint.store import checkpoint_name, damage, read_best
    from dist_train.errors import WorkError

    found = checkpoints_at(where)
    best = read_best(found[0].parent.parent)
    wrong: list[str] = []
    for checkpoint in found:
        trouble = damage(checkpoint)
        wrong += [f"{checkpoint.name}: {line}" for line in trouble]
        mark = ", best" if best and checkpoint.name == checkpoint_name(best[0]) else ""
        echo(f"{checkpoint}: {'DAMAGED' if trouble else 'sound'}{mark}")
        for line in trouble or describe_checkpoint(checkpoint):
            echo(f"  {line}")
    if wrong:
        raise WorkError(f"{where}: {wrong[0]}; a resumed run passes over damaged checkpoints")


def checkpoints_at(where: Path) -> list[Path]:
    """The checkpoints of a run, oldest first, or the one that `where` is.

    Raises:
        UserError: none there.
    """
    from dist_train.checkpoint.store import committed_checkpoints
    from dist_train.errors import UserError

    found = [where] if (where / METADATA_NAME).exists() else committed_checkpoints(where)
    if not found:
        raise UserError(
            f"{where}: no checkpoint; give a run directory or one like RUN/{CHECKPOINTS_NAME}/step-00001000"
        )
    return found


def describe_checkpoint(checkpoint: Path) -> list[str]:
    """Progress, files, and tensors by part."""
    import math

    from dist_train.checkpoint.metadata import read_tensors
    from dist_train.checkpoint.store import read_progress

    progress = read_progress(checkpoint)
    files = [file for file in checkpoint.iterdir() if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    lines = [
        f"step {progress.step:,}, {progress.position:,} samples seen, pictures of {progress.image_size} px, "
        f"{progress.num_classes:,} classes, data {progress.data_digest[:12]}",
        f"{size / 1e6:,.1f} MB in {len(files)} files, written by {len(list(checkpoint.glob('checksums-*')))} ranks",
    ]
    parts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for name, entry in read_tensors(checkpoint).items():
        numbers = math.prod(entry.size)
        # The head's tables are few and large: each has a line of its own.
        part = f"{name} {list(entry.size)}" if name.startswith("head.") and numbers > 1 else name.partition(".")[0]
        parts[part][0] += 1
        parts[part][1] += numbers
        parts[part][2] += numbers * entry.properties.dtype.itemsize
    width = max(len(part) for part in parts)
    for part, (count, numbers, held) in sorted(parts.items()):
        lines.append(f"{part:<{width}}  {count:>5} tensors {numbers:>15,} numbers {held / 1e6:>12,.1f} MB")
    return lines
