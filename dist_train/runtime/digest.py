"""SHA-256 digests, hexadecimal."""

import hashlib
from pathlib import Path


def sha256_of(path: Path) -> str:
    """Digest of a file's content.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
