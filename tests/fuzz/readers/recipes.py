"""Recipes and overrides of the command line."""

import os
from pathlib import Path

from dist_train.config import dump_config, load_config
from tests.fuzz.formats import YAML
from tests.fuzz.mutations import TEXT
from tests.fuzz.reader import Reader, Scene

RECIPE = b"""\
run_dir: runs/x  # where
data: {path: sets/x, workers: 0, augment: {flip: 0.5, rotation: 10}}
backbone:
  name: tiny
  embedding_dim: 32
head: {margin: arcface, scale: 16.0, m2: 0.1, sample_rate: 0.5}
train: {steps: 40, global_batch_size: 64, precision: float32}
optimizer: {lr: 0.01, schedule: step, milestones: [10, 20], gamma: 0.1}
checkpoint: {every_steps: 10, every_minutes: 1.5}
track: {wandb: disabled, name: null}
evaluate: {verification: [a/lfw.bin, b/cfp.bin]}
export: {onnx: false}
phases:
  - {at: 10, head: {sample_rate: 1.0}, optimizer: {schedule: constant, milestones: []}}
  - {at: 20, data: {augment: {flip: 0.0}, image_size: 64}, start: {freeze: [stem]}}
"""
OVERRIDES = (b"head.sample_rate=0.2", b"evaluate.verification=[a.bin, b.bin]", b"track.name=null", b"train={steps: 30}")


def _recipes() -> list[Scene]:
    configs = sorted(path for path in Path("configs").glob("*.yaml") if not path.name.startswith("detector_"))
    return [Scene({"recipe.yaml": text}, "recipe.yaml") for text in (RECIPE, *(path.read_bytes() for path in configs))]


def _read_recipe(home: Path) -> None:
    dump_config(load_config(home / "recipe.yaml"))


def _overrides() -> list[Scene]:
    return [Scene({"recipe.yaml": RECIPE, "override": text}, "override") for text in OVERRIDES]


def _read_override(home: Path) -> None:
    # As an argument of a command: bytes that are not UTF-8 come as surrogates; NUL cannot come at all.
    text = os.fsdecode((home / "override").read_bytes().replace(b"\0", b""))
    dump_config(load_config(home / "recipe.yaml", [text]))


READERS = (
    Reader("recipe", _recipes, _read_recipe, YAML),
    Reader("override", _overrides, _read_override, TEXT),
)
