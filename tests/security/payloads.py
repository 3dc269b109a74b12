"""Harmless payloads: what a foreign file would run makes a folder, whose absence is the test's proof."""

import json
import os
import pickle
import zlib
from pathlib import Path


class Attack:
    """Unpickled by Python's own unpickler it makes the folder `mark`."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def change_metadata(checkpoint: Path, change) -> None:
    """Read a checkpoint's `.metadata` as torch does, have `change` do something to it, and store it as sound."""
    path = checkpoint / ".metadata"
    body = pickle.loads(path.read_bytes())
    changed = change(body)
    path.write_bytes(pickle.dumps(body if changed is None else changed))
    seal(checkpoint)


def seal(checkpoint: Path) -> None:
    """Make the checksums those of the files as they are: whoever changes a file can do that too."""
    path = checkpoint / "checksums-0.json"
    body = json.loads(path.read_text())
    for name in body["files"]:
        data = (checkpoint / name).read_bytes()
        body["files"][name] = [len(data), zlib.crc32(data)]
    path.write_text(json.dumps(body))
