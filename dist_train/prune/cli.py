"""`headcount prune`."""

from pathlib import Path
from typing import Annotated

import typer

from dist_train.prune.options import By, Scope
from dist_train.runtime.imports import quick_imports
from dist_train.runtime.terminal import echo


def prune(
    run: Annotated[Path, typer.Argument(help="run directory to prune, or one checkpoint in it")],
    out: Annotated[Path, typer.Argument(help="run directory to write; must not exist")],
    keep: Annotated[float, typer.Option(min=0.01, max=0.99, help="share of the channels that is kept")] = 0.8,
    scope: Annotated[
        Scope,
        typer.Option(
            help="embedding: numbers of the embedding; channels: those of every other layer, through the graph of what "
            "depends on what"
        ),
    ] = Scope.embedding,
    by: Annotated[
        By,
        typer.Option(
            help="which channels go: those of the smallest weights, of the smallest scales in BatchNorm, or those "
            "without which embeddings of --set move least"
        ),
    ] = By.magnitude,
    pictures_from: Annotated[
        Path | None, typer.Option("--set", help="directory of shards with pictures for --by first-order; no labels")
    ] = None,
    images: Annotated[int, typer.Option(min=1, max=65536, help="how many pictures of --set are used")] = 512,
    multiple: Annotated[
        int, typer.Option(min=1, max=256, help="with --scope channels: what a layer keeps is a multiple of it")
    ] = 8,
) -> None:
    """Leave the least important channels out of a trained network.

    OUT is a run directory with a plain smaller network, which eval, embed, export and bench take, and start.backbone
    and objectives.distill of a recipe. Its config.yaml is the recipe of RUN with the smaller network.

    Examples:

      headcount prune runs/quickstart runs/short --keep 0.8

      headcount prune runs/faces runs/narrow --scope channels --keep 0.7 --by first-order --set sets/faces
    """
    from dist_train.runtime.extras import require

    if scope is Scope.channels:
        require("prune", "headcount prune --scope channels")
    with quick_imports():
        from dist_train.prune.job import PruneJob, prune_run

    done = prune_run(PruneJob(run, out, keep, scope, by, pictures_from, images, multiple))
    before, after = done.before, done.after
    for name, old, new in (
        ("parameters", before.parameters, after.parameters),
        ("FLOPs a picture", before.flops, after.flops),
        ("numbers of an embedding", before.embedding_dim, after.embedding_dim),
    ):
        echo(f"{name:<24}{old:>16,} -> {new:>16,}  (x{new / old:.3f})")
    echo(f"written to {out}; what it costs: headcount eval {run} {out} --sets SET")
    head = run if scope is Scope.channels else done.centers
    start = f"start.backbone={out}" + (f" start.head={head}" if head else "")
    echo(
        f"to train it on: headcount train {out}/config.yaml run_dir=TUNED {start} "
        f"'objectives.distill={{teacher: {run}}}'"
    )
