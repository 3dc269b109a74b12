"""A tiny run whose weights are handed on."""

import copy
import json
from functools import cache

import pyarrow as pa
import pyarrow.parquet as pq

from dist_train.checkpoint.load import load_backbone
from tests.sets import write_set
from tests.single import trainer

CLASSES = 10
_loaded = cache(load_backbone)


def write_names(path, names):
    pq.write_table(pa.table({"label": range(len(names)), "name": list(names)}), path)


def read_once(monkeypatch, *modules):
    """Have `modules` read each checkpoint once for all tests, and copy what they get: it takes a fifth of a second."""

    def load(path):
        backbone, config, progress = _loaded(path)
        return copy.deepcopy(backbone), config, progress

    for module in modules:
        monkeypatch.setattr(module, "load_backbone", load)


def train_run(directory):
    """Four steps with checkpoints at 2 and 4, on a set with names; as if evaluated at the end. Gives the run's path."""
    write_set(directory / "set", classes=CLASSES)
    write_names(directory / "set" / "identities.parquet", [f"person {n}" for n in range(CLASSES)])
    saved = {"train__steps": 4, "checkpoint__every_steps": 2, "checkpoint__keep": 3}
    loop = trainer(directory, directory / "set", **saved)
    assert loop.fit()
    loop.close()
    summary = {"steps": 4, "images": 80, "verification_accuracy": 0.75, "tar_at_far": {"0.001": 0.5}}
    (directory / "run" / "summary.json").write_text(json.dumps(summary))
    return directory / "run"
