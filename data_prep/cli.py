"""The command group `headcount prep`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from data_prep.align_cli import align, resume
from data_prep.detect_cli import detect
from data_prep.drawn_faces_cli import drawn_faces
from data_prep.eval_detector_cli import eval_detector
from data_prep.import_cli import import_folder
from data_prep.merge_cli import merge
from data_prep.pairs_cli import pairs
from data_prep.split_cli import split
from data_prep.train_detector_cli import train_detector
from dist_train.runtime.terminal import echo

app = typer.Typer(help="Make sharded training sets from photos or from fonts.", no_args_is_help=True)


@app.callback()
def prep() -> None:
    """Make sharded training sets."""


@app.command()
def glyphs(
    output: Annotated[Path, typer.Argument(help="directory to make, with train/ and heldout/ in it")],
    image_size: Annotated[int, typer.Option(min=32, max=512, help="side of the pictures in pixels")] = 112,
    fonts: Annotated[
        list[Path] | None,
        typer.Option(help="directory of fonts; repeat for more; by default the fonts of matplotlib and of the system"),
    ] = None,
    identities: Annotated[
        int | None, typer.Option(min=2, help="largest number of characters to train on; by default all")
    ] = None,
    views: Annotated[
        int | None, typer.Option(min=2, max=10_000, help="pictures of each character; by default one for each font")
    ] = None,
    min_fonts: Annotated[int, typer.Option(min=2, help="a character is used if at least so many fonts draw it")] = 3,
    heldout_identities: Annotated[
        int, typer.Option(min=2, help="largest number of characters that are held out")
    ] = 1000,
    heldout_fonts: Annotated[float, typer.Option(min=0.01, max=0.9, help="share of the fonts that is held out")] = 0.2,
    pairs: Annotated[int, typer.Option(min=20, help="number of pairs in verification.bin")] = 6000,
    difficulty: Annotated[
        float, typer.Option(min=0, max=3, help="strength of blur, noise and all other changes; 0 draws clean glyphs")
    ] = 1.0,
    jpeg_quality: Annotated[int, typer.Option(min=60, max=100, help="highest JPEG quality of the pictures")] = 90,
    shard_samples: Annotated[int, typer.Option(min=1, help="pictures in a shard")] = 10_000,
    seed: Annotated[
        int, typer.Option(min=0, help="seed of every random choice; the same seed and fonts give the same bytes")
    ] = 0,
    workers: Annotated[
        int | None, typer.Option(min=1, help="number of processes; by default one for each core")
    ] = None,
) -> None:
    """Draw an identity set from fonts, without any download.

    Every character is an identity, every font a view of it, and every picture gets random changes: shift, scale,
    rotation, perspective, stroke weight, blur, noise, contrast, texture, occlusion, JPEG. The held-out part has
    characters and font families that are not in the training part.

    Examples:

      headcount prep glyphs data/glyphs

      headcount prep glyphs data/quick --image-size 64 --views 16

      headcount prep glyphs data/hanzi --fonts /usr/share/fonts/opentype --min-fonts 12 --workers 8
    """
    from dist_train.runtime.extras import require

    require("glyphs", "headcount prep glyphs")
    from data_prep.glyphs.build import GlyphOptions, build_glyphs

    stats = build_glyphs(
        GlyphOptions(
            output=output,
            font_dirs=tuple(fonts or ()),
            image_size=image_size,
            seed=seed,
            min_fonts=min_fonts,
            identities=identities,
            views=views,
            heldout_identities=heldout_identities,
            heldout_fonts=heldout_fonts,
            pairs=pairs,
            difficulty=difficulty,
            jpeg_quality=jpeg_quality,
            shard_samples=shard_samples,
            workers=workers or len(os.sched_getaffinity(0)),
        )
    )
    train, heldout = stats["train"], stats["heldout"]
    echo(
        f"{output}: {train['identities']} identities, {train['pictures']} pictures to train on; "
        f"{heldout['identities']} identities, {heldout['pictures']} pictures, {heldout['pairs']} pairs held out "
        f"(fonts: {', '.join(heldout['families'])}); look at {output / 'sheet.png'}"
    )


app.command()(detect)
app.command()(drawn_faces)
app.command()(eval_detector)
app.command()(align)
app.command()(resume)
app.command()(pairs)
app.command()(merge)
app.command()(split)
app.command("import")(import_folder)
app.command("train-detector")(train_detector)
