"""A recipe as a tree of plain values: YAML within limits, and `section.key=value` overrides."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from dist_train.errors import UserError

MOST_BYTES = 1 << 18
"""Largest size of a recipe; the largest known ones have 4 kB. YAML is read at about 100 kB a second."""
_MOST_DEPTH = 20
_MOST_VALUES = 100_000  # with aliases written out, which can stand for more than any memory holds
_SHOWN = 200  # characters of a wrong value
_UNUSABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # in paths, names, scripts and figures


def read_tree(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The values of a recipe after its overrides; a value of an override is parsed as YAML.

    Raises:
        UserError: the file or an override cannot be read, or holds more than a recipe can.
    """
    tree = _parse(_read(path), f"config {path}")
    if not isinstance(tree, dict):
        raise UserError(f"config {path}: expected sections with keys, found {type(tree).__name__}")
    for override in overrides:
        _apply(tree, override)
    _check_tree(tree, f"config {path}")
    return tree


def short(value: object) -> str:
    """A value as it is shown in errors: its beginning, where it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


class _Loader(yaml.SafeLoader):
    """Plain YAML; a value that does not fit its own tag, e.g. a date of month 13, is an error with line and column."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> object:
        """Construct a value; a wrong one is an error with its line."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError) as error:
            kind = node.tag.rpartition(":")[2]
            raise yaml.constructor.ConstructorError(
                None, None, f"{short(node.value)} is no {kind}: {short(str(error))}", node.start_mark
            ) from error


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise UserError(f"config {path}: more than {MOST_BYTES >> 10} kB; it is no recipe")
        return content.decode()
    except OSError as error:
        raise UserError(f"config {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"config {path}: byte {error.start} is not UTF-8; save it as UTF-8 text") from error


def _parse(text: str, where: str) -> Any:  # noqa: ANN401 - whatever the text holds
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not YAML: {error}") from error
    except RecursionError as error:
        raise UserError(f"{where}: nested too deeply; a recipe has sections with keys") from error


def _check_tree(tree: dict[Any, Any], where: str) -> None:
    """Refuse what is too large or too deep to be worked with, and text that no value may hold."""
    todo: list[tuple[str, Any]] = [("", tree)]
    count = 0
    while todo:
        key, value = todo.pop()
        count += 1
        if count > _MOST_VALUES or key.count(".") > _MOST_DEPTH:
            what = f"nested deeper than {_MOST_DEPTH} sections" if count <= _MOST_VALUES else "too many values"
            raise UserError(f"{where}: {what} ({short(key)}); a recipe has sections with keys")
        if isinstance(value, str) and (found := _UNUSABLE.search(value)):
            raise UserError(f"{where}: {key[:_SHOWN]}: {found[0]!r} in {short(value)}; remove the control character")
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        todo += [(f"{key}.{name}".removeprefix("."), item) for name, item in items]


def _apply(tree: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    if not sign or not key:
        raise UserError(f"override {short(override)}: expected section.key=value, e.g. head.sample_rate=0.2")
    value = _parse(text, f"override {short(override)}")
    *sections, last = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise UserError(f"override {short(override)}: {section} is a value, not a section")
    tree[last] = value
