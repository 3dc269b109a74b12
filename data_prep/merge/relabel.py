"""A sample under a new label and key: all else that it carries, of whatever kind, keeps its bytes."""

import json
from collections.abc import Sequence

from dist_train.data.tar_samples import Sample, parts_of

ROLE_KEY = "role"
"""Entry of a `.json` that says whether a picture belongs to a gallery or is a probe."""


def relabelled(
    sample: Sample,
    contents: Sequence[bytes],
    labels: tuple[int, int],
    label_key: str,
    prefix: str,
    role: str | None = None,
) -> list[tuple[str, bytes]]:
    """Names and contents of the members of a sample under a new label and key; all else is as it was.

    Args:
        sample: as it is.
        contents: of its members.
        labels: its label, and the new one.
        label_key: the entry of its `.json` that is the label, where the `.json` has it.
        prefix: of its key.
        role: what its `.json` says that it is, a gallery's picture or a probe; a sample without `.json` gets one. The
            record of a sample that gets a role is a JSON object.
    """
    old, new = labels
    parts = parts_of(sample.members)
    stated, record = parts.beside.get("cls"), parts.beside.get("json")
    if sample.archive:  # of tars that were joined, whose keys may be those of the first
        prefix = f"{prefix}{sample.archive}-"
    files = []
    for member, data in zip(sample.members, contents, strict=True):
        if member is stated:
            data = b"%d" % new
        elif member is record:
            data = _relabelled_record(data, label_key, old, new)
            data = data if role is None else json.dumps({**json.loads(data), ROLE_KEY: role}).encode()
        files.append((_renamed(member.name, prefix), data))
        if stated is None and member is parts.pictures[0]:
            files.append((_renamed(f"{sample.key}.cls", prefix), b"%d" % new))
    if role is not None and record is None:
        files.append((_renamed(f"{sample.key}.json", prefix), json.dumps({ROLE_KEY: role}).encode()))
    return files


def _relabelled_record(data: bytes, label_key: str, old: int, new: int) -> bytes:
    """A `.json` with its label changed; without one it keeps its bytes."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        return data
    label = body.get(label_key) if isinstance(body, dict) else None
    if old == new or isinstance(label, bool) or not isinstance(label, int) or label != old:
        return data
    return json.dumps({**body, label_key: new}).encode()


def _renamed(name: str, prefix: str) -> str:
    folder, slash, base = name.rpartition("/")
    return f"{folder}{slash}{prefix}{base}"
