"""Files of weights and of exported centers, that a run starts from."""

import io
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dist_train.backbones import build_backbone
from dist_train.backbones.config import backbone_section
from dist_train.data.identities import read_identities
from dist_train.start.centers import ExportedCenters, centers_beside
from dist_train.weights.files import read_weights
from dist_train.weights.fit import fit_weights
from dist_train.weights.load import NETWORK_KEY, SIDE_KEY, load_network
from dist_train.weights.write import Blocks, write_safetensors
from tests.fuzz.mutations import BYTES
from tests.fuzz.reader import Reader, Scene

SECTION = backbone_section({"name": "nano", "embedding_dim": 8})
SIDE = 32
ROWS = np.arange(6)


@lru_cache
def state() -> dict[str, torch.Tensor]:
    """Of a network with random weights."""
    torch.manual_seed(0)
    return build_backbone(SECTION, SIDE).state_dict()


def _safetensors(tensors: dict[str, torch.Tensor], about: dict[str, str]) -> bytes:
    file = io.BytesIO()
    write_safetensors(file, {name: Blocks.of(tensor) for name, tensor in tensors.items()}, about)
    return file.getvalue()


def _exported() -> list[Scene]:
    about = {NETWORK_KEY: SECTION.model_dump_json(), SIDE_KEY: str(SIDE)}
    return [Scene({"a.safetensors": _safetensors(state(), about)}, "a.safetensors")]


def _pickled() -> list[Scene]:
    file = io.BytesIO()
    torch.save({"state_dict": state()}, file)
    return [Scene({"a.pt": file.getvalue()}, "a.pt")]


def _centers() -> list[Scene]:
    table = io.BytesIO()
    pq.write_table(pa.table({"label": ROWS, "name": [f"person {row}" for row in ROWS]}), table)
    files = {
        "a.centers.safetensors": _safetensors({"centers": torch.rand(len(ROWS), 8)}, {}),
        "a.identities.parquet": table.getvalue(),
    }
    return [Scene(files, name) for name in files]


def _start(home: Path) -> None:
    fit_weights(read_weights(home / "a.pt").state, state(), SECTION).misfits()


def _carry(home: Path) -> None:
    centers, names = centers_beside(home / "a.centers.safetensors")
    table = ExportedCenters(centers)
    table.take(ROWS[table.shape[0] > ROWS])
    read_identities(names, "name", table.shape[0])


READERS = (
    Reader("exported weights", _exported, lambda home: load_network(home / "a.safetensors"), BYTES),
    Reader("weights by torch", _pickled, _start, BYTES),
    Reader("exported centers", _centers, _carry, BYTES),
)
