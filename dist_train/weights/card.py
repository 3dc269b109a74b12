"""The model card that lies beside exported weights: what they are, what they take, how to load them."""

import json
import logging
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import yaml

from dist_train.backbones.registry import BACKBONES
from dist_train.checkpoint.compatibility import COMPATIBLE_KEY, compatible_with
from dist_train.checkpoint.store import Progress
from dist_train.config import RunConfig, differences, dump_config
from dist_train.data.aligner import ALIGNER_KEY, UNKNOWN, Aligner
from dist_train.data.alignment import TEMPLATE_112
from dist_train.errors import UserError
from dist_train.evaluate.calibration import THRESHOLDS_KEY, Calibration
from dist_train.export.convention import Convention
from dist_train.run_files import SUMMARY_NAME
from dist_train.runtime.files import first_fault, read_bounded
from dist_train.runtime.text import shown_name, shown_start
from dist_train.weights.load import NETWORK_KEY

logger = logging.getLogger(__name__)

MARK = "---\nlibrary_name: headcount\n"
"""What every card begins with."""
_SUMMARY_BYTES = 1 << 20
_MOST_FIGURES = 64
_MOST = 1 << 62  # what is larger, or not a number, is no figure
_SAID_ELSEWHERE = {"identities", "images", "ranks", "steps", "images_per_s", "seconds"}
_MARKUP = re.compile(r"[\\`*_{}\[\]()<>#+!|&~]")


@dataclass(frozen=True)
class Parent:
    """A checkpoint that weights come from.

    Attributes:
        run: name of its run's directory.
        config: the run's recipe.
        progress: where the run stood.
        summary: figures of the run, of the same step; empty where it has none.
        compatible_with: SHA-256 of the older network that embeddings can be compared with those of; empty for none.
    """

    run: str
    config: RunConfig
    progress: Progress
    summary: dict[str, object] = field(default_factory=dict)
    compatible_with: str = ""

    @classmethod
    def of(cls, checkpoint: Path, config: RunConfig, progress: Progress) -> "Parent":
        """Read what the run's directory says of the checkpoint."""
        run_dir = checkpoint.absolute().parent.parent
        summary = _read_summary(run_dir, progress.step)
        return cls(run_dir.name, config, progress, summary, compatible_with(checkpoint))

    def __str__(self) -> str:
        return f"{self.run}, step {self.progress.step}"


@dataclass(frozen=True)
class Card:
    """What a model card says.

    Attributes:
        file: name of the file of weights.
        names: whose names its tensors have.
        parameters: numbers that training moves.
        parents: the checkpoints that it comes from.
        notes: further facts, a row each, by what they are about.
        centers: names of the files of centers and of identities; empty without.
        thresholds: of the network, measured on a set; None where there are none.
    """

    file: str
    names: str
    parameters: int
    parents: tuple[Parent, ...]
    notes: dict[str, str] = field(default_factory=dict)
    centers: tuple[str, ...] = ()
    thresholds: Calibration | None = None

    @property
    def convention(self) -> Convention:
        """What the network takes and gives."""
        first = self.parents[0]
        return Convention.of_ours(first.progress.image_size, first.config.backbone.embedding_dim)

    @property
    def compatible_with(self) -> str:
        """SHA-256 of the older network that every checkpoint was trained to be compatible with; empty for none."""
        found = {each.compatible_with for each in self.parents}
        return found.pop() if len(found) == 1 else ""

    @property
    def aligner(self) -> Aligner | None:
        """What placed the faces of every parent's pictures; None where it is unknown, or they differ."""
        found = {each.progress.aligner for each in self.parents}
        return found.pop() if len(found) == 1 else None

    def header(self) -> dict[str, str]:
        """The facts that a program may need, for the header of a safetensors file."""
        config = self.parents[0].config
        facts = self.convention.to_metadata() | {
            "format": "pt",  # by which other libraries know the tensors for torch's
            "producer": "headcount",
            NETWORK_KEY: config.backbone.model_dump_json(),
            "names": self.names,
            "parents": "; ".join(map(str, self.parents)),
            "data_digest": "; ".join(dict.fromkeys(shown_start(each.progress.data_digest) for each in self.parents)),
        }
        if self.compatible_with:
            facts[COMPATIBLE_KEY] = self.compatible_with
        if self.aligner:
            facts[ALIGNER_KEY] = self.aligner.to_text()
        if self.thresholds:
            facts[THRESHOLDS_KEY] = self.thresholds.to_text()
        return facts if len(self.parents) > 1 else facts | {"recipe": dump_config(config)}

    def text(self) -> str:
        """The card in Markdown; text of the run's files cannot become markup."""
        title = str(self.parents[0]) if len(self.parents) == 1 else f"Mean of {len(self.parents)} checkpoints"
        parts = [f"{MARK}tags: [feature-extraction]\n---", f"# {escaped(title)}", _table(self._facts())]
        parts += ["## Input", self._input(), "## Loading", *self._loading()]
        if self.centers:
            parts += ["## Class centers", self._centers()]
        if self.thresholds:
            parts += ["## Thresholds", _thresholds(self.thresholds)]
        parts += self._figures()
        parts += self._recipe()
        return "\n\n".join(parts) + "\n"

    def _facts(self) -> list[tuple[str, str]]:
        config = self.parents[0].config
        rows = [
            ("network", f"{escaped(config.backbone.name)}, {self.parameters:,} parameters"),
            ("embedding", f"{config.backbone.embedding_dim} numbers; {self.convention.to_metadata()['output']}"),
            ("tensors", f"named as in {escaped(self.names)}"),
        ]
        for each in self.parents:
            pictures = each.summary.get("images")
            counted = f", {pictures:,} pictures" if isinstance(pictures, int) and pictures < _MOST else ""
            what = "trained on" if len(self.parents) == 1 else escaped(str(each))
            digest = escaped(shown_start(each.progress.data_digest))
            rows.append((what, f"{each.progress.num_classes:,} identities{counted}, set {digest}"))
        if self.compatible_with:
            older = f"embeddings can be searched in galleries of the network with SHA-256 {self.compatible_with}"
            rows.append(("compatible", older))
        aligned = UNKNOWN if self.aligner is None else f"{escaped(self.aligner.name)}, SHA-256 {self.aligner.sha256}"
        rows.append(("faces aligned by", aligned))
        return rows + [(escaped(name), escaped(value)) for name, value in self.notes.items()]

    def _input(self) -> str:
        side = self.convention.image_size
        points = ", ".join(f"({x * side / 112:.2f}, {y * side / 112:.2f})" for x, y in TEMPLATE_112)
        return (
            f"{self.convention}: `(value - 127.5) / 127.5` of pictures of {side} x {side} pixels, channels red, green, "
            "blue.\n\n"
            "Where the pictures are of faces, a similarity transform has moved five points (left eye, right eye, nose, "
            f"left and right corner of the mouth, as seen) to {points}, as `headcount prep align` does."
        )

    def _loading(self) -> list[str]:
        config = self.parents[0].config
        section = {"name": config.backbone.name, "embedding_dim": config.backbone.embedding_dim}
        section |= config.backbone.model_dump(mode="json", exclude_defaults=True)
        recipe = yaml.safe_dump({"backbone": section, "start": {"backbone": self.file}}, sort_keys=False)
        parts = ["In a recipe of headcount:", fenced(recipe, "yaml")]
        if self.file.endswith(".safetensors"):
            lines = ["from safetensors.torch import load_file", "", f"state = load_file({self.file!r})"]
        else:
            lines = ["import torch", "", f"state = torch.load({self.file!r}, weights_only=True)"]
        short = BACKBONES[config.backbone.name].short_name if config.backbone.name in BACKBONES else None
        if self.names == "arcface_torch" and short:
            dim = config.backbone.embedding_dim
            lines[1:1] = ["from backbones import get_model  # in recognition/arcface_torch of InsightFace"]
            lines += [
                f"network = get_model({short!r}, fp16=False, num_features={dim})",
                "network.load_state_dict(state)",
            ]
        return [*parts, "In Python:", fenced("\n".join(lines), "python")]

    def _centers(self) -> str:
        head = self.parents[0].config.head
        k = 1 if head is None else head.centers_per_class
        shape = "[C, D]" if k == 1 else f"[C, {k}, D]"
        table, names = (escaped(shown_name(name)) for name in self.centers)
        return f"{table}: `centers`, float32 {shape}; row by row the identities of {names} (`label`, `name`)."

    def _figures(self) -> list[str]:
        if len(self.parents) > 1:
            return []
        figures = _numbers(self.parents[0].summary)
        rows = [(escaped(name), f"{value:g}") for name, value in figures.items()]
        return ["## Figures at the end of the run", _table(rows)] if rows else []

    def _recipe(self) -> list[str]:
        first, *others = self.parents
        parts = [f"## Recipe of {escaped(first.run)}", fenced(dump_config(first.config), "yaml")]
        for each in others:
            if changed := differences(first.config, each.config):
                parts += [f"Otherwise in {escaped(each.run)}:", fenced("\n".join(changed), "text")]
        return parts


def card_path(weights: Path) -> Path:
    """Where the card of a file of weights is.

    Raises:
        UserError: there is a text that is no card, which would be lost.
    """
    path = weights.with_suffix(".md")
    if path.exists():
        try:
            ours = path.open("rb").read(len(MARK)) == MARK.encode()
        except OSError:
            ours = False
        if not ours:
            raise UserError(f"{path}: is there and no model card, which would replace it; give --output another name")
    return path


def escaped(text: str) -> str:
    """Text of unknown origin for Markdown: on one line, every sign that may be markup after a backslash."""
    return _MARKUP.sub(lambda found: "\\" + found[0], shown_name(text))


def fenced(text: str, language: str) -> str:
    """A block of code between fences that the text cannot close."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _table(rows: list[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)])


def _thresholds(measured: Calibration) -> str:
    lines = [
        f"Two pictures match when the cosine of their embeddings is at least the threshold. Measured on "
        f"{escaped(measured.set)}: FMR is the share of its {measured.impostor_pairs:,} pairs of two identities that "
        f"match, FNMR that of its {measured.genuine_pairs:,} pairs of one that do not. A star: too few pairs for the "
        "rate.\n",
        "| FMR | threshold | FNMR |",
        "| --- | --- | --- |",
    ]
    for point in measured.operating_points:
        if point.threshold is not None:
            star = "" if point.resolved else r" \*"
            lines.append(f"| {point.fmr:g}{star} | {point.threshold:.4f} | {point.fnmr_text()} |")
    return "\n".join(lines)


def _read_summary(run_dir: Path, step: int) -> dict[str, object]:
    """The run's summary where it is of that step: later figures are not these weights'."""
    try:
        summary = json.loads(read_bounded(run_dir / SUMMARY_NAME, _SUMMARY_BYTES))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else first_fault(error)
        logger.warning("%s: cannot be read (%s); the model card has no figures", run_dir / SUMMARY_NAME, reason)
        return {}
    return summary if isinstance(summary, dict) and summary.get("steps") == step else {}


def _numbers(summary: dict[str, object]) -> dict[str, float]:
    """The figures of a summary, also those one level down, by names of bounded length."""
    found: dict[str, float] = {}
    for name, value in summary.items():
        entries = {f"{name}, {key}": each for key, each in value.items()} if isinstance(value, dict) else {name: value}
        for key, each in entries.items():
            usable = isinstance(each, int | float) and not isinstance(each, bool) and abs(each) < _MOST
            if usable and name not in _SAID_ELSEWHERE and len(found) < _MOST_FIGURES:
                found[shown_start(key)] = float(cast(float, each))
    return found
