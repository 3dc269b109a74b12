"""Mutations that know a format, so that what they make passes its first checks."""

import io
import json
import random
import struct
import tarfile
import zlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from tests.fuzz.mutations import BYTES, INTERESTING, TEXT, Mutation

_DEEP, _HUGE = "@@deep@@", "@@huge@@"
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    3,
    2**31,
    2**63,
    -(2**63) - 1,
    10**30,
    0.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    float("-inf"),
    "",
    "x",
    "0",
    "\ud800",
    "\0",
    "a\0b",
    "\x1b[31m",
    "../../x",
    "/etc/passwd",
    "A" * 70_000,
    [],
    {},
    ["a"],
    [1, 2],
    {"a": 1},
    [[]],
    [None],
    _DEEP,
    _HUGE,
)


def _paths(tree: Any, here: tuple = ()) -> list[tuple]:
    found = [here]
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        found += _paths(value, (*here, key))
    return found


def change_tree(chance: random.Random, tree: Any) -> Any:
    """A tree of dicts and lists with a value replaced, removed, added, renamed or wrapped."""
    path = chance.choice(_paths(tree))
    if not path:
        return chance.choice(VALUES) if chance.random() < 0.3 else tree
    parent = tree
    for key in path[:-1]:
        parent = parent[key]
    key = path[-1]
    match chance.randrange(8):
        case 0:
            del parent[key]
        case 1:
            parent[key] = chance.choice(([parent[key]], {"a": parent[key]}, str(parent[key])))
        case 2 if isinstance(parent, dict):
            parent[chance.choice(("x", "", "\0", "version", "1", "a.b"))] = parent.pop(key)
        case 3 if isinstance(parent, list):
            parent.extend([parent[key]] * chance.choice((1, 100)))
        case _:
            parent[key] = chance.choice(VALUES)
    return tree


def _finish(chance: random.Random, text: str) -> bytes:
    deep = chance.choice(("[", '{"a":')) * chance.choice((900, 3000, 60_000))
    text = text.replace(f'"{_DEEP}"', deep).replace(_DEEP, deep)
    text = text.replace(f'"{_HUGE}"', "9" * 5000).replace(_HUGE, "9" * 5000)
    return text.encode("utf-8", "surrogatepass")


def json_tree(chance: random.Random, content: bytes, other: bytes) -> bytes:
    """A value of a JSON text, or of a line of JSON."""
    *before, line = content.split(b"\n")[: (at := chance.randrange(content.count(b"\n") + 1)) + 1]
    whole = True
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError):
        whole = False
        try:
            tree = json.loads(line)
        except (ValueError, RecursionError):
            return content
    for _ in range(chance.choice((1, 1, 2, 3))):
        tree = change_tree(chance, tree)
    changed = _finish(chance, json.dumps(tree, ensure_ascii=chance.random() < 0.7))
    return changed if whole else b"\n".join([*before, changed, *content.split(b"\n")[at + 1 :]])


_YAML_PIECES = (
    "!!python/object/apply:os.system ['true']",
    "!!python/name:os.system",
    "!!binary aGVsbG8=",
    "!!timestamp 2001-12-14t21:59:43.10-05:00",
    "2001-13-99",
    "2001-99-99 99:99:99",
    "!!set {a, b}",
    "!!omap [a: 1]",
    "!!float x",
    "!!int 0b2",
    "!!bool maybe",
    "!!null x",
    "!unknown x",
    "&a [*a]",
    "&a {b: *a}",
    "*missing",
    "{<<: [1]}",
    "{? [a, b] : c}",
    "{? {a: b} : c}",
    "{1: 2, null: 3, 1.5: x}",
    "1:30:99",
    "190:20:30.15",
    "1e400",
    "0x" + "F" * 5000,
    "'\\ud800'",
    '"\\ud800"',
    '"\\0"',
    '"\\x1b[2J"',
    "\ufeff",
)


def _laughs() -> str:
    rows = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    rows += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    return "\n".join(rows) + "\n"


def yaml_tree(chance: random.Random, content: bytes, other: bytes) -> bytes:
    """A value of a YAML text, in ways that JSON does not have."""
    try:
        tree = yaml.safe_load(content)
    except (yaml.YAMLError, ValueError, RecursionError, AttributeError, TypeError):
        return content
    if not isinstance(tree, dict) or not tree:
        return content
    mark = "@@piece@@"
    section = chance.choice(list(tree))
    if isinstance(tree[section], dict) and tree[section] and chance.random() < 0.7:
        tree[section][chance.choice(list(tree[section]))] = mark
    elif chance.random() < 0.8:
        tree[section] = mark
    else:
        tree[mark] = tree.pop(section)
    text = yaml.safe_dump(tree, sort_keys=False)
    if chance.random() < 0.08:
        return (_laughs() + text.replace(mark, "*a11")).encode()
    piece = chance.choice(_YAML_PIECES) if chance.random() < 0.7 else json.dumps(chance.choice(VALUES))
    return _finish(chance, text.replace(mark, piece))


_FIELDS = {"name": (0, 100), "mode": (100, 8), "uid": (108, 8), "size": (124, 12), "mtime": (136, 12)}
_FIELDS |= {"type": (156, 1), "link": (157, 100), "magic": (257, 8), "prefix": (345, 155), "sparse": (386, 96)}


def tar_header(chance: random.Random, content: bytes, other: bytes) -> bytes:
    """A field of a tar's header, with the checksum that fits."""
    heads = [at for at in range(0, len(content) - 511, 512) if content[at + 257 : at + 262] == b"ustar"]
    if not heads:
        return content
    at = chance.choice(heads)
    head = bytearray(content[at : at + 512])
    field = chance.choice(list(_FIELDS))
    start, width = _FIELDS[field]
    if field == "type":
        value = chance.choice((b"0", b"\0", b"1", b"2", b"3", b"5", b"6", b"L", b"K", b"x", b"g", b"S", b"7", b"Z"))
    elif field in ("size", "mtime", "uid", "mode") and chance.random() < 0.8:
        number = chance.choice(INTERESTING)
        octal = b"%0*o" % (width - 1, number) if number >= 0 else b""
        binary = b"\x80" + (number % 2 ** (8 * (width - 1))).to_bytes(width - 1, "big")
        value = octal if 0 < len(octal) < width else binary
    else:
        value = chance.choice(
            (
                b"",
                b"../x.jpg",
                b"/x.cls",
                b"a.b.jpg",
                b".jpg",
                b"x",
                b"\xff\xfe.jpg",
                b"a b.jpg",
                b"%41\n.jpg",
                b"\x1b[2J.png",
            )
        )
    head[start : start + width] = value[:width].ljust(width, b"\0")
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return content[:at] + bytes(head) + content[at + 512 :]


def tar_extended(chance: random.Random, content: bytes, other: bytes) -> bytes:
    """An extended header before a member: PAX records or a GNU name, sound and not."""
    heads = [at for at in range(0, len(content) - 511, 512) if content[at + 257 : at + 262] == b"ustar"]
    if not heads:
        return content
    at = chance.choice(heads)
    records = chance.choice(
        (
            b"path=d\xc3\xa9.jpg",
            b"size=99999999999",
            b"size=-5",
            b"size=x",
            b"path=" + b"p" * 5000 + b".jpg",
            b"GNU.sparse.major=1\n30 GNU.sparse.minor=0",
            b"GNU.sparse.map=0,1,x",
            b"GNU.sparse.realsize=99999999999999",
            b"hdrcharset=BINARY",
            b"mtime=1e999",
            b"path=",
            b"uid=nan",
        )
    )
    body = b"%d %s\n" % (len(records) + 4, records)
    if chance.random() < 0.3:
        body = chance.choice((b"99999999999999999999 path=x\n", b"0 path=x\n", b"-3 path=x\n", b"path\n", b"\xff" * 9))
    kind = chance.choice((tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK))
    info = tarfile.TarInfo("PaxHeader")
    info.type, info.size = kind, len(body)
    extra = info.tobuf(tarfile.USTAR_FORMAT) + body + bytes(-len(body) % 512)
    return content[:at] + extra + content[at:]


def picture_size(chance: random.Random, content: bytes, other: bytes) -> bytes:
    """Width and height in the head of a JPEG, PNG, GIF, WebP, BMP or TIFF."""
    changed = bytearray(content)
    sides = [chance.choice((0, 1, 16, 112, 4096, 16384, 20000, 65535, 2**20, 2**31 - 1)) for _ in range(2)]
    small = [side & 0xFFFF for side in sides]
    if content[:2] == b"\xff\xd8":
        at = next((i for kind in (0xC0, 0xC1, 0xC2) if (i := content.find(bytes([0xFF, kind]))) > 0), 0)
        if 0 < at < len(content) - 9:
            struct.pack_into(">HH", changed, at + 5, *small)
    elif content[:8] == b"\x89PNG\r\n\x1a\n" and len(content) > 33:
        struct.pack_into(">II", changed, 16, *sides)
        if chance.random() < 0.3:
            changed[24:26] = bytes([chance.choice((1, 2, 4, 8, 16)), chance.choice((0, 2, 3, 4, 6))])
        struct.pack_into(">I", changed, 29, zlib.crc32(changed[12:29]))
    elif content[:3] == b"GIF" and len(content) > 10:
        struct.pack_into("<HH", changed, 6, *small)
        at = content.find(b"\x2c", 13)
        if 0 < at < len(content) - 9 and chance.random() < 0.7:
            struct.pack_into("<HH", changed, at + 5, *small)
    elif content[:4] == b"RIFF" and len(content) > 30:
        start = {b"VP8X": 24, b"VP8 ": 26, b"VP8L": 21}.get(content[12:16], 24)
        changed[start : start + 4] = chance.choice((b"\xff" * 4, struct.pack("<HH", *small)))
    elif content[:2] == b"BM" and len(content) > 30:
        struct.pack_into("<ii", changed, 18, *sides)
        if chance.random() < 0.3:
            struct.pack_into("<H", changed, 28, chance.choice((0, 1, 4, 8, 16, 24, 32, 64)))
    elif content[:4] == b"II*\0":
        (start,) = struct.unpack_from("<I", content, 4)
        for at in range(start + 2, min(start + 2 + 12 * 20, len(content) - 12), 12):
            if struct.unpack_from("<H", content, at)[0] in (256, 257, 258, 277, 278, 279) and chance.random() < 0.5:
                struct.pack_into("<I", changed, at + 8, chance.choice(sides))
    return bytes(changed)


_TYPES = (pa.string(), pa.int8(), pa.int32(), pa.uint64(), pa.float64(), pa.binary(), pa.bool_(), pa.large_string())


def parquet_table(chance: random.Random, content: bytes, other: bytes) -> bytes:
    """A sound table with columns of other types, names, values or lengths."""
    try:
        table = pq.read_table(io.BytesIO(content))
    except (OSError, ValueError, pa.ArrowException):
        return content
    if not table.num_columns:
        return content
    at = chance.randrange(table.num_columns)
    name, column = table.column_names[at], table.column(at)
    match chance.randrange(7):
        case 0:
            table = table.drop_columns([name])
        case 1:
            table = table.slice(0, 0)
        case 2:
            table = table.rename_columns([*table.column_names[:at], "\x1b[1m", *table.column_names[at + 1 :]])
        case 3:
            table = table.append_column(name, column)
        case 4:
            table = table.set_column(at, name, pa.nulls(len(table), column.type))
        case 5:
            try:
                table = table.set_column(at, name, column.cast(chance.choice(_TYPES)))
            except (pa.ArrowException, ValueError):
                table = table.set_column(at, name, pa.array([["x"]] * len(table)))
        case _:
            bad = chance.choice(
                ([-1], [2**62], [float("nan")], [float("inf")], ["\x1b[2J"], [""], [None], [b"\xff"], [{}])
            )
            table = table.set_column(at, name, pa.array(bad * len(table)))
    sink = io.BytesIO()
    try:
        pq.write_table(table, sink)
    except (pa.ArrowException, ValueError, OSError):
        return content
    return sink.getvalue()


def array_head(chance: random.Random, content: bytes, other: bytes) -> bytes:
    """Shape and type of a `.npy`, over the same data."""
    if content[:6] != b"\x93NUMPY":
        return content
    shape = chance.choice(
        ("(3,)", "()", "(-1, 4)", "(99999999999, 4)", "(0, 0)", "(4, 99999999999999999999)", "(2.5,)", "'x'")
    )
    kind = chance.choice(
        ("'<f4'", "'|O'", "'<U99999999'", "'>f8'", "'|b1'", "'<M8[ns]'", "[('a', '<f4')]", "'zz'", "5")
    )
    order = chance.choice(("True", "False", "None"))
    text = f"{{'descr': {kind}, 'fortran_order': {order}, 'shape': {shape}, }}"
    start = 10 if content[6] == 1 else 12
    (length,) = struct.unpack_from("<H" if content[6] == 1 else "<I", content, 8)
    data = content[start + length :]
    sink = io.BytesIO()
    sink.write(b"\x93NUMPY\x01\0" + struct.pack("<H", len(text) + 1) + text.encode() + b"\n")
    return sink.getvalue() + data


def array_values(chance: random.Random, content: bytes, other: bytes) -> bytes:
    """Numbers of a `.npy` that are not finite, or of another type and shape."""
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError):
        return content
    choice = chance.randrange(5)
    if choice == 0 and array.size and array.dtype.kind == "f":
        array.reshape(-1)[chance.randrange(array.size)] = chance.choice((np.nan, np.inf, 0, 3e38))
    changed = (array, array.astype(np.float64), array.T, array[:0], array.astype(np.int64) * -5)[choice]
    sink = io.BytesIO()
    np.save(sink, changed)
    return sink.getvalue()


_PICKLE_PIECES = (
    b"cos\nsystem\n(S'true'\ntR.",
    b"\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
    b"r\xff\xff\xff\x7f",
    b"\x8b\xff\xff\xff\x7f",
    b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\x96\xff\xff\xff\x7f\x00\x00\x00\x00",
    b"B\xff\xff\xff\x7f",
    b"I999999999999\n",
    b"L" + b"9" * 5000 + b"L\n",
    b"(" * 3000,
    b"]" * 3000 + b"a" * 2999,
    b"\x85" * 3000,
    b"2" * 100,
    b"R",
    b"b",
    b"\x81",
    b"N",
    b"\x88",
    b"F1e999\n",
    b"K\xff",
    b"cnumpy\nndarray\n",
    b"c__builtin__\nbytearray\n(J\xff\xff\xff\x7ftR",
    b"cbuiltins\nbytes\n(J\xff\xff\xff\x7ftR",
)


def pickle_pieces(chance: random.Random, content: bytes, other: bytes) -> bytes:
    """Instructions of pickle: calls, huge counts, deep nesting."""
    at = chance.choice((2, chance.randrange(len(content) + 1), max(0, len(content) - 1)))
    return content[:at] + chance.choice(_PICKLE_PIECES) + content[at:]


JSON: tuple[Mutation, ...] = (json_tree,) * 8 + TEXT
YAML: tuple[Mutation, ...] = (yaml_tree,) * 8 + TEXT
TAR: tuple[Mutation, ...] = (tar_header,) * 8 + (tar_extended,) * 4 + BYTES
PICTURE: tuple[Mutation, ...] = (picture_size,) * 6 + BYTES
PARQUET: tuple[Mutation, ...] = (parquet_table,) * 8 + BYTES
ARRAY: tuple[Mutation, ...] = (array_head,) * 4 + (array_values,) * 4 + BYTES
PICKLE: tuple[Mutation, ...] = (pickle_pieces,) * 6 + BYTES
