"""Forms that clients send: multipart, held in memory alone, each field at most once."""

from collections.abc import Collection
from typing import NamedTuple

from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

_MOST_TEXT = 4096  # bytes of a field that is no photo
_MOST_FIELDS = 8


class _InMemory(MultiPartParser):
    """Never writes what was sent to a temporary file; the body is bounded already."""

    spool_max_size = 1 << 62


class Form(NamedTuple):
    """A form: photos and texts by name."""

    photos: dict[str, bytes]
    texts: dict[str, str]

    def photo(self, name: str) -> bytes:
        """A photo that must be there."""
        if name not in self.photos:
            what = "is text, expected a file" if name in self.texts else "is missing"
            raise HTTPException(422, f"field {name} {what}: curl -F {name}=@photo.jpg")
        return self.photos[name]

    def number(self, name: str, default: int, least: int, most: int) -> int:
        """A whole number, or the default."""
        text = self.texts.get(name, "")
        if not text:
            return default
        if not (text.isascii() and text.isdigit() and len(text) < 17 and least <= int(text) <= most):
            raise HTTPException(422, f"field {name} is {text[:40]!r}, expected a whole number from {least} to {most}")
        return int(text)

    def yes(self, name: str) -> bool:
        """A flag: true or false; false where it is missing."""
        text = self.texts.get(name, "false").lower()
        if text not in ("true", "false"):
            raise HTTPException(422, f"field {name} is {text[:40]!r}, expected true or false")
        return text == "true"


async def read_form(request: Request, names: Collection[str]) -> Form:
    """The form of a request.

    Args:
        request: whose body is in memory.
        names: of the fields that it may have.

    Raises:
        HTTPException: not a form, broken, or with other fields (415, 400, 422).
    """
    kind = request.headers.get("content-type", "")
    if not kind.lower().startswith("multipart/form-data"):
        raise HTTPException(415, f"expected a form, multipart/form-data: curl -F {next(iter(names))}=...")
    parser = _InMemory(
        Headers(raw=request.headers.raw),
        request.stream(),  # not its body, which the request would keep beside the photos
        max_files=_MOST_FIELDS,
        max_fields=_MOST_FIELDS,
        max_part_size=_MOST_TEXT,
    )
    try:
        fields = (await parser.parse()).multi_items()
    except (MultiPartException, ValueError, LookupError, AssertionError) as error:  # of a boundary or a charset
        raise HTTPException(400, f"the form is broken: {str(error)[:200] or type(error).__name__}") from error
    form = Form({}, {})
    for name, value in fields:
        if name not in names:
            raise HTTPException(422, f"field {name[:40]!r} is unknown; there are {', '.join(names)}")
        if name in form.photos or name in form.texts:
            raise HTTPException(422, f"field {name} is there twice")
        if isinstance(value, UploadFile):
            form.photos[name] = await value.read()
            await value.close()
        else:
            form.texts[name] = value
    return form
