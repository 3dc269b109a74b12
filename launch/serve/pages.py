"""Pages of a service: files of our own that load nothing, with a policy that lets nothing else run."""

import base64
import hashlib
import re
from functools import cache
from importlib import resources
from typing import Any

import jinja2
from starlette.responses import HTMLResponse

_FILES = resources.files("launch.serve")
_PARTS = {
    "script": re.compile(r"<script>(.*?)</script>", re.DOTALL),
    "style": re.compile(r"<style>(.*?)</style>", re.DOTALL),
}
_HEADERS = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "cache-control": "no-store"}


@cache
def page() -> HTMLResponse:
    """The page on which photos are tried."""
    return _response((_FILES / "page.html").read_text(encoding="utf-8"))


def reference(description: dict[str, Any]) -> HTMLResponse:
    """The page that explains the interface, made of its OpenAPI description."""
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True).from_string(
        (_FILES / "reference.html.jinja").read_text(encoding="utf-8")
    )
    return _response(template.render(info=description["info"], rows=_rows(description)))


def policy(text: str) -> str:
    """The Content-Security-Policy of a page: its own script and style, by their digests, and pictures in memory."""
    allowed = {
        part: " ".join(f"'sha256-{_digest(found)}'" for found in pattern.findall(text)) or "'none'"
        for part, pattern in _PARTS.items()
    }
    return (
        f"default-src 'none'; script-src {allowed['script']}; style-src {allowed['style']}; img-src blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _response(text: str) -> HTMLResponse:
    return HTMLResponse(text, headers={"content-security-policy": policy(text), **_HEADERS})


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _rows(description: dict[str, Any]) -> list[dict[str, Any]]:
    """What can be asked: method, path, words, fields of the form, and fields of the answer."""
    schemas = description.get("components", {}).get("schemas", {})
    return [
        {
            "method": method.upper(),
            "path": path,
            "summary": asked.get("summary", ""),
            "description": asked.get("description", ""),
            "fields": _fields(asked.get("requestBody", {}).get("content", {}).get("multipart/form-data", {})),
            "answer": _answer(asked["responses"].get("200", {}), schemas),
        }
        for path, methods in description["paths"].items()
        for method, asked in methods.items()
    ]


def _fields(content: dict[str, Any]) -> list[tuple[str, str]]:
    schema = content.get("schema", {})
    needed = schema.get("required", [])
    return [
        (name, "file" if kind.get("format") == "binary" else kind["type"] + ("" if name in needed else ", optional"))
        for name, kind in schema.get("properties", {}).items()
    ]


def _answer(response: dict[str, Any], schemas: dict[str, Any]) -> list[tuple[str, str]]:
    reference = response.get("content", {}).get("application/json", {}).get("schema", {}).get("$ref", "")
    schema = schemas.get(reference.rpartition("/")[2], {})
    return [(name, field.get("description", "")) for name, field in schema.get("properties", {}).items()]
