"""What is done to bytes: blind changes, and changes to text. Those that know a format are in `formats.py`.

A mutation is a function of (random.Random, content, another seed of the same reader) that gives the changed content.
"""

import random
import re
from collections.abc import Callable, Sequence

Mutation = Callable[[random.Random, bytes, bytes], bytes]

INTERESTING = (0, 1, -1, 127, 128, 255, 256, 32767, 65535, 65536, 2**31 - 1, -(2**31), 2**32 - 1, 2**62, 2**63 - 1)
LONGEST = 1 << 22  # bytes of an input; what grows beyond is cut

NUMBERS = (
    *(b"0 -1 1e999 -1e999 1e400 1e-400 NaN Infinity -Infinity .inf .nan 1_0 0x10 0o17 1e5 00012".split()),
    b"99999999999999999999",
    b"9" * 5000,
    b"18446744073709551616",
    b"-9223372036854775809",
)
WORDS = (
    b"",
    b"\0",
    b"a\0b",
    b"\xff\xfe",
    b"\xed\xa0\x80",  # a surrogate in UTF-8
    b"\x1b[2J\x1b]0;title\x07",
    "‮gpj.exe".encode(),
    b"\r",
    b"A" * 100_000,
    b"../" * 40 + b"etc/passwd",
    b"/etc/passwd",
    b"..",
    b"file:///etc/passwd",
    b"reference://x",
    b"http://127.0.0.1:9/x",
    b"null",
    b"true",
    b"[]",
    b"{}",
    b'""',
    b"%s%n{0}{x!r}",
)
OPENERS = (b"[", b'{"a":', b"{a: ", b"- ", b"? ", b"(", b"!!seq [", b"&a [")


def flip_bits(chance: random.Random, content: bytes, other: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 8, 64))):
        if changed:
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def set_bytes(chance: random.Random, content: bytes, other: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.choice((1, 2, 8))):
        if changed:
            changed[chance.randrange(len(changed))] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
    return bytes(changed)


def truncate(chance: random.Random, content: bytes, other: bytes) -> bytes:
    return content[: chance.randrange(len(content) + 1)]


def drop_start(chance: random.Random, content: bytes, other: bytes) -> bytes:
    return content[chance.randrange(len(content) + 1) :]


def block(chance: random.Random, content: bytes) -> tuple[int, int]:
    """Start and end of a random part."""
    start = chance.randrange(len(content) + 1)
    return start, min(len(content), start + chance.choice((1, 2, 4, 8, 64, 512, 4096)))


def repeat_block(chance: random.Random, content: bytes, other: bytes) -> bytes:
    start, end = block(chance, content)
    return content[:end] + content[start:end] * chance.choice((1, 2, 16, 300)) + content[end:]


def remove_block(chance: random.Random, content: bytes, other: bytes) -> bytes:
    start, end = block(chance, content)
    return content[:start] + content[end:]


def overwrite_block(chance: random.Random, content: bytes, other: bytes) -> bytes:
    start, end = block(chance, content)
    filler = chance.choice((bytes(end - start), b"\xff" * (end - start), chance.randbytes(end - start)))
    return content[:start] + filler + content[end:]


def splice(chance: random.Random, content: bytes, other: bytes) -> bytes:
    start, end = block(chance, other)
    at = chance.randrange(len(content) + 1)
    if chance.random() < 0.3:
        return content[:at] + other[start:]
    return content[:at] + other[start:end] + content[at:]


def append(chance: random.Random, content: bytes, other: bytes) -> bytes:
    return content + chance.choice((other, bytes(512), chance.randbytes(100), b"\n", content))


def set_integer(chance: random.Random, content: bytes, other: bytes) -> bytes:
    width = chance.choice((1, 2, 4, 4, 8))
    if len(content) < width:
        return content
    at = chance.randrange(len(content) - width + 1)
    if chance.random() < 0.5:
        at -= at % width
    value = chance.choice(INTERESTING) % 256**width
    return content[:at] + value.to_bytes(width, chance.choice(("little", "big"))) + content[at + width :]


def empty(chance: random.Random, content: bytes, other: bytes) -> bytes:
    return chance.choice((b"", b"\0", b"\n", bytes(1 << 20)))


BYTES: tuple[Mutation, ...] = (
    flip_bits,
    flip_bits,
    set_bytes,
    set_bytes,
    truncate,
    drop_start,
    repeat_block,
    remove_block,
    overwrite_block,
    splice,
    append,
    set_integer,
    set_integer,
)


def _replace_one(chance: random.Random, pattern: bytes, content: bytes, values: Sequence[bytes]) -> bytes:
    found = list(re.finditer(pattern, content[: 1 << 16]))
    if not found:
        return content
    place = chance.choice(found)
    return content[: place.start()] + chance.choice(values) + content[place.end() :]


def replace_number(chance: random.Random, content: bytes, other: bytes) -> bytes:
    return _replace_one(chance, rb"-?\d+(\.\d+)?([eE][-+]?\d+)?", content, NUMBERS)


def replace_word(chance: random.Random, content: bytes, other: bytes) -> bytes:
    return _replace_one(chance, rb"[A-Za-z_./]{2,}", content, WORDS)


def number_for_word(chance: random.Random, content: bytes, other: bytes) -> bytes:
    return _replace_one(chance, rb"[A-Za-z_./]{2,}", content, NUMBERS)


def word_for_number(chance: random.Random, content: bytes, other: bytes) -> bytes:
    return _replace_one(chance, rb"-?\d+(\.\d+)?", content, WORDS)


def nest(chance: random.Random, content: bytes, other: bytes) -> bytes:
    opener = chance.choice(OPENERS) * chance.choice((50, 1100, 3000, 50_000))
    if chance.random() < 0.3:
        return opener
    return _replace_one(chance, rb"[\w./-]{1,}", content, (opener,))


def lines(chance: random.Random, content: bytes, other: bytes) -> bytes:
    """Lines are repeated, dropped, swapped or broken."""
    parts = content.split(b"\n")
    first, second = chance.randrange(len(parts)), chance.randrange(len(parts))
    match chance.randrange(5):
        case 0:
            parts[first], parts[second] = parts[second], parts[first]
        case 1:
            parts.insert(first, parts[second])
        case 2:
            del parts[first]
        case 3:
            parts[first] = parts[first].replace(b" ", b"\n", 1)
        case _:
            parts[first] = chance.choice(WORDS)
    return b"\n".join(parts)


def recode(chance: random.Random, content: bytes, other: bytes) -> bytes:
    """Another encoding, a mark of byte order, or other ends of lines."""
    text = content.decode("utf-8", "replace")
    return chance.choice(
        (
            b"\xef\xbb\xbf" + content,
            text.encode("utf-16"),
            content.replace(b"\n", b"\r\n"),
            content.replace(b"\n", b"\r"),
            content.replace(b"\n", "\u2028".encode()),
            content + b"\xe9\xff",
        )
    )


TEXT: tuple[Mutation, ...] = (
    replace_number,
    replace_number,
    replace_word,
    replace_word,
    number_for_word,
    word_for_number,
    nest,
    lines,
    recode,
    flip_bits,
    set_bytes,
    truncate,
    repeat_block,
    splice,
    empty,
)


def mutate(chance: random.Random, content: bytes, other: bytes, mutations: Sequence[Mutation]) -> tuple[bytes, str]:
    """`content` changed by one to four of `mutations`, and their names."""
    names = []
    for _ in range(chance.choice((1, 1, 1, 2, 2, 3, 4))):
        mutation = chance.choice(mutations)
        try:
            content = mutation(chance, content, other)[:LONGEST]
        except Exception:  # what earlier mutations left may be beyond the libraries that this one uses
            continue
        names.append(mutation.__name__)
    return content, "+".join(names)
