"""InsightFace RecordIO files for tests, written from the format alone."""

import struct
from collections.abc import Sequence
from pathlib import Path

MAGIC = struct.pack("<I", 0xCED7230A)


def payload(labels: float | Sequence[float], data: bytes, number: int = 0) -> bytes:
    if isinstance(labels, int | float):
        return struct.pack("<IfQQ", 0, labels, number, 0) + data
    return struct.pack(f"<IfQQ{len(labels)}f", len(labels), 0.0, number, 0, *labels) + data


def _part(flag: int, piece: bytes) -> bytes:
    return MAGIC + struct.pack("<I", flag << 29 | len(piece)) + piece + b"\0" * (-len(piece) % 4)


def record(body: bytes) -> bytes:
    """One record; split at magic numbers that lie at multiples of 4, as the format's writer does."""
    pieces, start = [], 0
    for at in range(0, len(body) - 3, 4):
        if body[at : at + 4] == MAGIC:
            pieces.append(body[start:at])
            start = at + 4
    pieces.append(body[start:])
    if len(pieces) == 1:
        return _part(0, body)
    flags = [1, *[2] * (len(pieces) - 2), 3]
    return b"".join(_part(flag, piece) for flag, piece in zip(flags, pieces, strict=True))


def write_rec(
    directory: Path,
    pictures: Sequence[tuple[float | Sequence[float], bytes]],
    index: bool = True,
    header: bool = True,
    size_px: int = 112,
) -> list[int]:
    """Write a set of `pictures`, (label, data) each; the offsets of all records by number."""
    directory.mkdir(parents=True, exist_ok=True)
    labels = [label if isinstance(label, int | float) else label[0] for label, _ in pictures]
    bodies = [payload(label, data, number) for number, (label, data) in enumerate(pictures, start=int(header))]
    if header:
        identities = sorted(set(labels))
        first = len(pictures) + 1
        bodies.insert(0, payload((first, first + len(identities)), b""))
        for identity in identities:
            own = [number for number, label in enumerate(labels, start=1) if label == identity]
            bodies.append(payload((own[0], own[-1] + 1), b""))
    offsets, content = [], b""
    for body in bodies:
        offsets.append(len(content))
        content += record(body)
    (directory / "train.rec").write_bytes(content)
    if index:
        lines = [f"{number}\t{offset}\n" for number, offset in enumerate(offsets)]
        (directory / "train.idx").write_text("".join(lines))
    (directory / "property").write_text(f"{len(set(labels))},{size_px},{size_px}\n")
    return offsets
