"""The page docs/recipe.md, from the sections' own descriptions: `python -m tests.docs.keys` writes it."""

import json
import pkgutil
from typing import Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from dist_train.backbones.config import BackboneConfig
from dist_train.backbones.registry import BACKBONES
from dist_train.config import RunConfig
from dist_train.section import section_of
from tests.docs.pages import ROOT

PAGE = ROOT / "docs" / "recipe.md"
HEAD = """# The keys of a recipe

Every key with its default, its range and what it does. A recipe sets the keys that differ from their defaults; on the
command line a key is `section.key=value`. This page is written from the program by `python -m tests.docs.keys`.
"""


def page():
    """The whole page: a table of keys for each section."""
    return HEAD + "".join(_tables(RunConfig, "", "a run"))


def _tables(model, prefix, title):
    keys = {name: field for name, field in model.model_fields.items() if not _has_table_alone(field)}
    if keys:
        what = " ".join((model.__doc__ or "").split("\n\n")[0].split())
        yield f"\n## {f'`{prefix[:-1]}`' if prefix else title[:1].upper() + title[1:]}\n\n{what}\n\n"
        yield "| key | default | values | what it does |\n| --- | --- | --- | --- |\n"
    for name, field in keys.items():
        yield _row(f"{prefix}{name}", field, field.description or "")
    if model is BackboneConfig:
        yield from _networks_own_keys(prefix)
    for name, field in model.model_fields.items():
        if section := section_of(field.annotation):
            yield from _tables(section, f"{prefix}{name}{'[]' if _is_list(field) else ''}.", name)


def _networks_own_keys(prefix):
    """Rows of keys that only some networks have."""
    networks = {}
    for name, spec in BACKBONES.items():
        networks.setdefault(spec.section, []).append(name)
    for section, names in networks.items():
        for key, field in pkgutil.resolve_name(section).model_fields.items():
            if key in BackboneConfig.model_fields:
                continue
            yield _row(f"{prefix}{key}", field, f"{field.description}; of {', '.join(names)}")


def _row(key, field, description):
    cells = [f"`{key}`", _default(field), _values(field), description]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _is_list(field: FieldInfo):
    return get_origin(field.annotation) is tuple


def _has_table_alone(field: FieldInfo):
    """Whether a field is a section, whose keys say it all; a list of sections has a line of its own, too."""
    return section_of(field.annotation) is not None and not _is_list(field)


def _default(field: FieldInfo):
    if field.is_required():
        return "none, must be given"
    return f"`{field.default}`" if isinstance(field.default, str) else f"`{json.dumps(field.default)}`"


def _values(field: FieldInfo):
    """The range of numbers, or the words that are admitted; empty for free text, paths and lists."""
    if get_origin(field.annotation) is Literal:
        return ", ".join(f"`{word}`" for word in get_args(field.annotation))
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    bounds = [
        (sign, getattr(rule, name)) for name, sign in signs.items() for rule in field.metadata if hasattr(rule, name)
    ]
    return ", ".join(f"{sign} {'2^63' if bound == 2**63 else f'{bound:g}'}" for sign, bound in bounds)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
