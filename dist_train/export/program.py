"""A backbone as a `torch.export` program: one file for PyTorch without our code."""

import io
import json
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from dist_train.errors import WorkError
from dist_train.export.convention import Convention
from dist_train.export.trace import Scaling, example_input, free_batch, quiet_exporter
from dist_train.runtime.text import first_line
from dist_train.runtime.written import written

logger = logging.getLogger(__name__)

CONVENTION_FILE = "convention.json"


def export_program(
    backbone: nn.Module, convention: Convention, path: Path, origin: Mapping[str, str] | None = None
) -> None:
    """Write `backbone` for `torch.export.load(path).module()`, with a free batch axis, by rename.

    The convention is in the file as `convention.json`
    (`extra = {"convention.json": ""}; torch.export.load(path, extra_files=extra)`).

    Args:
        backbone: in evaluation mode, on the CPU.
        convention: what the program takes.
        path: of the file.
        origin: where the weights come from (run, step).

    Raises:
        WorkError: it cannot be written.
    """
    uint8 = convention.input_type == "uint8"
    module = Scaling(backbone).eval() if uint8 else backbone
    stated = json.dumps(convention.to_metadata() | dict(origin or {}), indent=1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with torch.no_grad(), quiet_exporter():
            example = example_input(backbone, convention.image_size, uint8)
            program = torch.export.export(module, (example,), dynamic_shapes=free_batch())
            archive = io.BytesIO()  # torch ends the process when the disk refuses what it writes to a file
            torch.export.save(program, archive, extra_files={CONVENTION_FILE: stated})
            with written(path) as file:
                file.write(archive.getbuffer())
    except (OSError, RuntimeError) as error:  # torch's writer of archives raises the latter for a full disk
        raise WorkError(f"export to {path}: {first_line(error)}") from error
    logger.info("wrote %s: %.1f MB", path, path.stat().st_size / 1e6)
