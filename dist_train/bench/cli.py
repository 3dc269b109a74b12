"""`headcount bench`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from dist_train.evaluate.options import OutputOption, SizeOption
from dist_train.runtime.imports import quick_imports
from dist_train.runtime.terminal import echo

_MOST = 1024


def bench(
    models: Annotated[
        list[Path],
        typer.Argument(
            metavar="MODEL...",
            help="models to time: run directories, checkpoints, .onnx, .safetensors or .engine files; the first is "
            "what the others are compared with",
        ),
    ],
    batch: Annotated[
        list[int] | None,
        typer.Option(min=1, max=_MOST, help="pictures in a call; 1 and 32 by default; repeat for more"),
    ] = None,
    threads: Annotated[
        list[int] | None,
        typer.Option(min=1, max=_MOST, help="threads of the processor; 1 and all cores by default; repeat for more"),
    ] = None,
    rounds: Annotated[int, typer.Option(min=3, max=10_000, help="turns of each model in each case")] = 10,
    calls: Annotated[int, typer.Option(min=1, max=10_000, help="timed calls in a turn")] = 10,
    seconds: Annotated[
        float, typer.Option(min=0.1, max=86_400, help="time for a model in a case, after which fewer rounds are made")
    ] = 10.0,
    device: Annotated[str, typer.Option(help="where PyTorch computes: auto, cpu or cuda")] = "cpu",
    json_path: Annotated[Path | None, typer.Option("--json", help="file for the figures as JSON")] = None,
    input_size: SizeOption = None,
    output: OutputOption = None,
) -> None:
    """Time models side by side: percentiles of a call's latency and pictures a second, by batch and threads.

    Models take turns, so that all see the same load of the machine, which should do nothing else meanwhile. A call
    embeds pictures that are in memory: reading, decoding and finding faces are not in it.

    Examples:

      headcount bench runs/quickstart runs/quickstart/model.onnx

      headcount bench runs/faces small.onnx small.int8.onnx --batch 1 --batch 8 --threads 2 --json speed.json
    """
    with quick_imports():
        from dist_train.bench.contender import contender
        from dist_train.bench.processor import describe_machine
        from dist_train.bench.report import timings_table, write_timings
        from dist_train.bench.rounds import Case, measure
        from dist_train.errors import UserError
        from dist_train.export.convention import Stated
        from dist_train.runtime.ranks import join_ranks

    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {device!r}: expected auto, cpu or cuda")
    if json_path is not None and not json_path.absolute().parent.is_dir():
        raise UserError(f"--json {json_path}: no such directory; make it first")
    where = join_ranks(device, None).device
    machine = describe_machine(where)
    cores = len(os.sched_getaffinity(0))
    if wrong := [each for each in threads or () if each > cores]:
        raise UserError(f"--threads {wrong[0]}: this process may use {cores} cores; more threads wait for one another")
    stated = Stated(image_size=input_size, output=output)
    opened = [contender(path, where, stated) for path in models]
    counts = dict.fromkeys(threads or (1, cores))
    cases = [Case(count, size) for count in counts for size in dict.fromkeys(batch or (1, 32))]
    timings = [each for case in cases for each in measure(opened, case, rounds, calls, seconds)]
    echo(str(timings_table(timings, machine)))
    if json_path is not None:
        write_timings(json_path, timings, machine)
