"""What the first bytes of an encoded picture claim, and whether it is whole: read without decoding anything.

The standard library alone: `headcount export --triton` lays a copy of this file beside the model that decodes there.
"""

from typing import NamedTuple

MAX_ALIGNED_PIXELS = 1 << 24  # of a picture of a set, 4096 x 4096: 50 MB decoded, by each of many workers
MOST_SCANS = 100  # of a large progressive JPEG; encoders make about ten, and each costs the time of a whole decoding
_END, _SCAN = b"\xff\xd9", b"\xff\xda"


class PictureHeader(NamedTuple):
    """The header of an encoded picture: its format and sizes.

    Attributes:
        kind: as Pillow names it.
        width: in pixels, before any rotation.
        height: in pixels, before any rotation.
        bits: of a channel.
        channels: of a JPEG; 0 where it was not looked at.
        scans: where the first scan of a JPEG begins, in bytes; 0 for other kinds.
    """

    kind: str
    width: int
    height: int
    bits: int = 8
    channels: int = 0
    scans: int = 0


def read_header(data: bytes) -> PictureHeader | None:
    """The header of a JPEG, PNG or WebP; None for anything else."""
    if data[:2] == b"\xff\xd8":
        return _jpeg_header(data)
    if data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) >= 26:
        return PictureHeader("PNG", _big(data, 16, 4), _big(data, 20, 4), data[24])
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) >= 30:
        return _webp_header(data)
    return None


def cut_off(data: bytes, header: PictureHeader) -> str | None:
    """Why a picture is incomplete, or None; decoders fill the missing part with grey and say nothing.

    What comes after a picture's end does not matter. A JPEG's end mark cannot occur inside of scans; an embedded
    preview has one too, before the first scan.
    """
    if header.kind == "JPEG" and data.rfind(_END, header.scans) < 0:
        return f"JPEG of {len(data)} bytes without an end: it is cut off"
    if header.kind == "PNG":
        return _png_cut_off(data)
    if header.kind == "WEBP" and int.from_bytes(data[4:8], "little") + 8 > len(data):
        return f"WebP of {len(data)} bytes is cut off"
    return None


def too_many_scans(data: bytes, header: PictureHeader) -> str | None:
    """Why a JPEG would take all too long to decode, or None."""
    # A scan takes at least ten bytes and the time of all pixels; most pictures are too small for it to matter.
    if header.kind != "JPEG" or len(data) // 10 * header.width * header.height <= MOST_SCANS * MAX_ALIGNED_PIXELS:
        return None
    scans = data.count(_SCAN, header.scans, data.find(_END, header.scans))  # what comes after the end may hold anything
    return f"JPEG of {scans} scans, at most {MOST_SCANS} are decoded" if scans > MOST_SCANS else None


def described(data: bytes) -> str:
    """Size and start of something that is no picture, for messages."""
    return f"{len(data)} bytes that start with {data[:8].hex() or 'nothing'}"


def _jpeg_header(data: bytes) -> PictureHeader | None:
    """Walk over the segments to the start of frame (ITU T.81, B.2.2); stray bytes are skipped, as decoders do."""
    at = 2
    while at + 10 <= len(data):
        if data[at] != 0xFF:
            found = data.find(b"\xff", at)
            at = found if found >= 0 else len(data)
            continue
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8]
            # Previews, which have scans and ends of their own, lie in segments before the frame.
            return PictureHeader("JPEG", width, height, data[at + 4], data[at + 9], max(data.find(_SCAN, at), at))
        if marker in (0x00, 0xFF):  # no marker; a fill byte
            at += 1
        elif 0xD0 <= marker <= 0xD8 or marker == 0x01:  # they stand alone
            at += 2
        elif marker in (0xD9, 0xDA):
            return None
        else:
            at += 2 + (data[at + 2] << 8 | data[at + 3])
    return None


def _png_cut_off(data: bytes) -> str | None:
    """Walk over the chunks to the last one; OpenCV sets memory aside for what a chunk claims, up to 4 GB."""
    without_end = f"PNG of {len(data)} bytes without an end: it is cut off"
    if data.rfind(b"IEND") < 0:
        return without_end
    at = 8
    while at + 8 <= len(data):
        length = _big(data, at, 4)
        if data[at + 4 : at + 8] == b"IEND" and not length:
            return None
        at += 12 + length
        if at > len(data):
            return f"PNG of {len(data)} bytes with a chunk that claims {length:,}: it is cut off or damaged"
    return without_end


def _webp_header(data: bytes) -> PictureHeader | None:
    """Size of the canvas, by the three kinds of a first chunk (RFC 9649)."""
    kind = data[12:16]
    if kind == b"VP8X":
        return PictureHeader("WEBP", 1 + _little(data, 24, 3), 1 + _little(data, 27, 3))
    if kind == b"VP8L":
        bits = _little(data, 21, 4)
        return PictureHeader("WEBP", 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
    if kind == b"VP8 ":
        return PictureHeader("WEBP", _little(data, 26, 2) & 0x3FFF, _little(data, 28, 2) & 0x3FFF)
    return None


def _big(data: bytes, at: int, count: int) -> int:
    return int.from_bytes(data[at : at + count], "big")


def _little(data: bytes, at: int, count: int) -> int:
    return int.from_bytes(data[at : at + count], "little")
