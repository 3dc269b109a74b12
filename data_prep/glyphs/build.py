"""The job of `headcount prep glyphs`: survey fonts, split, render, write the training set and the held-out sets."""

import json
import pickle
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np

from data_prep.glyphs.fonts import Font, FontSearch, default_font_dirs, find_fonts
from data_prep.glyphs.nuisance import PictureSpec, picture
from data_prep.glyphs.render import EM_PX, Renderer
from data_prep.glyphs.split import Split, split_by_identity_and_font
from data_prep.glyphs.survey import Conflict, FontSurvey, find_conflicts, survey_font
from data_prep.new_directory import new_directory
from data_prep.shards import ShardWriter, write_set
from dist_train.data.manifest import Shard
from dist_train.errors import WorkError
from dist_train.runtime.in_processes import in_processes
from dist_train.runtime.progress import progress_bar

In = TypeVar("In")
Out = TypeVar("Out")

SHEET = (12, 20)
"""Rows (identities) and columns (views) of the contact sheet."""
# First view numbers of the parts that share characters and fonts, so that no picture occurs in two parts.
HELDOUT_VIEW, PAIR_VIEW = 1 << 20, 1 << 21


@dataclass(frozen=True, slots=True)
class GlyphOptions:
    """The options of `headcount prep glyphs`; see its help."""

    output: Path
    font_dirs: tuple[Path, ...] = ()
    image_size: int = 112
    seed: int = 0
    min_fonts: int = 3
    identities: int | None = None
    views: int | None = None
    heldout_identities: int = 1000
    heldout_fonts: float = 0.2
    pairs: int = 6000
    difficulty: float = 1.0
    jpeg_quality: int = 90
    shard_samples: int = 10_000
    workers: int = 1


@dataclass(frozen=True, slots=True)
class Sample:
    """A picture that is to be made: what it shows, and its record."""

    character: int
    font: int
    view: int
    label: int
    role: str | None = None


def build_glyphs(options: GlyphOptions) -> dict[str, Any]:
    """Make the sets; return the counts, which are also in `stats.json`.

    Raises:
        UserError: the output is not empty, or the fonts do not suffice.
        WorkError: the output cannot be written.
    """
    with new_directory(options.output) as writing:
        found = find_fonts(options.font_dirs or default_font_dirs())
        fonts = found.fonts
        surveys = list(_map(options.workers, partial(survey_font, fonts), range(len(fonts)), "survey fonts", "font"))
        conflicts = find_conflicts(surveys)
        dropped = {character for conflict in conflicts for character in conflict.dropped}
        split = split_by_identity_and_font(
            fonts,
            [frozenset(survey.looks) - dropped for survey in surveys],
            seed=options.seed,
            min_fonts=options.min_fonts,
            identities=options.identities,
            heldout_identities=options.heldout_identities,
            heldout_fonts=options.heldout_fonts,
        )
        train, heldout = _train_samples(split, options), _heldout_samples(split, options)
        _write_shards(writing / "train", train, split.train, fonts, options)
        _write_shards(writing / "heldout", heldout, split.heldout, fonts, options)
        _write_pairs(writing / "heldout" / "verification.bin", split, fonts, options)
        _write_sheet(writing / "sheet.png", train, fonts, options)
        stats = _statistics(found, surveys, conflicts, split, len(train), len(heldout), options)
        (writing / "stats.json").write_text(json.dumps(stats, indent=1) + "\n", encoding="utf-8")
        lines = [json.dumps({"kept": chr(c.kept), "dropped": [chr(d) for d in c.dropped]}) + "\n" for c in conflicts]
        (writing / "conflicts.jsonl").write_text("".join(lines), encoding="utf-8")
    return stats


def _map(workers: int, function: Callable[[In], Out], items: Iterable[In], name: str, unit: str) -> Iterator[Out]:
    """Values of `function` for each item in order, from `workers` processes, under a progress bar."""
    todo = list(items)
    bar = progress_bar(total=len(todo), desc=name, unit=unit)
    with bar:
        if workers == 1:
            for item in todo:
                yield function(item)
                bar.update()
            return
        for result in in_processes(function, todo, workers):
            yield result
            bar.update()


def _random(options: GlyphOptions, purpose: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.array([options.seed, purpose], dtype=np.uint64)))


def _train_samples(split: Split, options: GlyphOptions) -> list[Sample]:
    """Training samples: every identity once in each of its fonts, or `views` times, its fonts in turn."""
    samples = []
    for label, (character, fonts) in enumerate(split.train.items()):
        count = options.views or len(fonts)
        # Each character starts at another font, so that few views do not always mean the same fonts.
        samples += [Sample(character, fonts[(label + view) % len(fonts)], view, label) for view in range(count)]
    order = _random(options, 1).permutation(len(samples))
    return [samples[index] for index in order]


def _heldout_samples(split: Split, options: GlyphOptions) -> list[Sample]:
    """Held-out samples: every identity in each of its fonts, one picture for the gallery and the others as probes."""
    random = _random(options, 2)
    samples = []
    for label, (character, fonts) in enumerate(split.heldout.items()):
        enrolled = int(random.integers(len(fonts)))
        samples += [
            Sample(character, font, HELDOUT_VIEW, label, "gallery" if place == enrolled else "probe")
            for place, font in enumerate(fonts)
        ]
    return samples


def _picture_spec(options: GlyphOptions) -> PictureSpec:
    return PictureSpec(options.image_size, options.difficulty, options.jpeg_quality, options.seed)


def _draw(renderer: Renderer, spec: PictureSpec, character: int, font: int, view: int) -> bytes:
    mask = renderer.mask(font, character)
    if mask is None:
        raise WorkError(f"font number {font} drew U+{character:04X} in the survey and draws nothing now")
    return picture(mask, EM_PX, spec, (character, font, view))


def _write_shard(directory: Path, fonts: list[Font], spec: PictureSpec, unit: tuple[int, list[Sample]]) -> Shard:
    number, samples = unit
    renderer = Renderer(fonts)
    with ShardWriter(directory / f"glyphs-{number:06d}.tar") as writer:
        for sample in samples:
            image = _draw(renderer, spec, sample.character, sample.font, sample.view)
            record: dict[str, Any] = {"char": chr(sample.character), "font": fonts[sample.font].name}
            if sample.role:
                record["role"] = sample.role
            key = f"{sample.character:06x}-{sample.font:03d}-{sample.view:07d}"
            writer.write(key, image, sample.label, record)
    return writer.shard


def _write_shards(
    directory: Path, samples: list[Sample], characters: Iterable[int], fonts: list[Font], options: GlyphOptions
) -> None:
    size = options.shard_samples
    units = [(number, samples[start : start + size]) for number, start in enumerate(range(0, len(samples), size))]
    write = partial(_write_shard, directory, fonts, _picture_spec(options))
    shards = list(_map(options.workers, write, units, f"draw {directory.name}", "shard"))
    names = [f"U+{character:04X} {chr(character)}" for character in characters]
    counts = np.bincount([sample.label for sample in samples], minlength=len(names)).tolist()
    write_set(directory, options.image_size, names, counts, shards)


def _write_pairs(path: Path, split: Split, fonts: list[Font], options: GlyphOptions) -> None:
    """Write a verification set in InsightFace's form: each fold has as many pairs of one identity as of two."""
    random = _random(options, 3)
    characters = np.array(list(split.heldout), dtype=np.int64)
    spec, renderer = _picture_spec(options), Renderer(fonts)
    images: list[bytes] = []
    same: list[bool] = []
    for pair in progress_bar(range(options.pairs), desc="draw pairs", unit="pair"):
        one, other = (int(c) for c in random.choice(characters, 2, replace=False))
        match = pair % 2 == 0
        first, second = (int(random.choice(split.heldout[one])) for _ in range(2))
        while match and second == first:
            second = int(random.choice(split.heldout[one]))
        if not match:
            second = int(random.choice(split.heldout[other]))
        images.append(_draw(renderer, spec, one, first, PAIR_VIEW + 2 * pair))
        images.append(_draw(renderer, spec, one if match else other, second, PAIR_VIEW + 2 * pair + 1))
        same.append(match)
    path.write_bytes(pickle.dumps((images, same), protocol=4))


def _write_sheet(path: Path, samples: list[Sample], fonts: list[Font], options: GlyphOptions) -> None:
    """Write a contact sheet of the set, with an identity a row."""
    rows, columns = SHEET
    renderer, spec = Renderer(fonts), _picture_spec(options)
    labels = np.linspace(0, max(sample.label for sample in samples), rows).astype(int)
    blank = np.full((options.image_size, options.image_size, 3), 255, dtype=np.uint8)
    lines: list[np.ndarray] = []
    for label in labels:
        shown = [sample for sample in samples if sample.label == label][:columns]
        cells: list[Any] = [
            cv2.imdecode(np.frombuffer(_draw(renderer, spec, s.character, s.font, s.view), np.uint8), cv2.IMREAD_COLOR)
            for s in shown
        ]
        lines.append(np.hstack(cells + [blank] * (columns - len(cells))))
    cv2.imwrite(str(path), np.vstack(lines))


def _statistics(
    found: FontSearch,
    surveys: list[FontSurvey],
    conflicts: list[Conflict],
    split: Split,
    train: int,
    heldout: int,
    options: GlyphOptions,
) -> dict[str, Any]:
    return {
        "fonts": found.counts,
        "glyphs": {
            "drawn": sum(len(survey.looks) for survey in surveys),
            "blank": sum(survey.blank for survey in surveys),
            "failed": sum(survey.failed for survey in surveys),
            "placeholders": sum(survey.placeholders for survey in surveys),
        },
        "characters": len(set().union(*(survey.looks for survey in surveys))),
        "conflicts": {"groups": len(conflicts), "dropped": sum(len(conflict.dropped) for conflict in conflicts)},
        "train": {"identities": len(split.train), "pictures": train},
        "heldout": {
            "identities": len(split.heldout),
            "pictures": heldout,
            "pairs": options.pairs,
            "families": list(split.heldout_families),
        },
        "options": {
            key: value for key, value in asdict(options).items() if key not in ("output", "font_dirs", "workers")
        },
    }
