"""Files behind addresses: which kinds of address are followed, and downloads that end, in bytes and in seconds."""

import asyncio
import io
from collections.abc import Awaitable
from pathlib import Path
from threading import Event
from typing import Any

import fsspec
import fsspec.asyn
from fsspec.callbacks import Callback

from dist_train.errors import UserError
from dist_train.runtime.extras import require
from dist_train.runtime.text import shown

SCHEMES = ("http", "https", "s3", "gs")
_EXTRAS = {"s3": "s3", "gs": "gcs"}  # what brings the libraries of a scheme
"""fsspec knows more, some of which open local files, run templates or start programs."""
_CONNECT_S = 30  # to reach a server
_SILENCE_S = 60  # between two bytes of an answer
_MOST_REDIRECTS = 5  # aiohttp follows them to http and https only


class TooLargeError(Exception):
    """A file behind an address has more bytes than were expected."""


class StoppedError(Exception):
    """Nobody waits for a file behind an address any more."""


def check_address(url: str) -> None:
    """See that an address is of a kind that is followed.

    Raises:
        UserError: another scheme, or one behind another (`zip::https://...`).
    """
    scheme = url.partition("://")[0]
    if scheme not in SCHEMES:
        raise UserError(f"{shown(url)}: scheme {shown(scheme)}, expected one of {', '.join(SCHEMES)}")


def read_address(url: str, limit: int, timeout_s: float) -> bytes:
    """Content of a file behind an address.

    Raises:
        TooLargeError: more than `limit` bytes.
        TimeoutError: not complete after `timeout_s` seconds.
        UserError: the kind of address is not followed, or its library is not installed.
        Exception: whatever the address's library raises; FileNotFoundError where the file is not there.
    """
    filesystem, path, options = _open(url)
    if options:
        # A server may send everything whatever range it is asked for: what comes is counted.
        content = _BoundedBytes(limit)
        _finish(filesystem, filesystem._get_file(path, content, **options), timeout_s)
        return content.getvalue()
    data = bytes(_finish(filesystem, filesystem._cat_file(path, start=0, end=limit + 1), timeout_s))
    if len(data) > limit:
        raise TooLargeError(f"more than {limit} bytes")
    return data


def download(url: str, target: Path, limit: int, timeout_s: float, stop: Event | None = None) -> None:
    """Copy a file behind an address to `target`; a link that is there is replaced, not followed.

    Raises:
        TooLargeError: more than `limit` bytes; what came is still at `target`.
        StoppedError: `stop` was set meanwhile; what came is still at `target`.
        TimeoutError: not complete after `timeout_s` seconds.
        UserError: the kind of address is not followed, or its library is not installed.
        Exception: whatever the address's library raises; FileNotFoundError where the file is not there.
    """
    filesystem, path, options = _open(url)
    target.unlink(missing_ok=True)
    _finish(filesystem, filesystem._get_file(path, str(target), callback=_Bound(limit, stop), **options), timeout_s)


def _open(url: str) -> tuple[Any, str, dict[str, Any]]:
    """File system, path in it, and options of each request, which there are for HTTP alone."""
    check_address(url)
    session: dict[str, Any] = {}
    options: dict[str, Any] = {}
    if url.startswith("http"):
        import aiohttp

        limits = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_SILENCE_S)
        session = {"client_kwargs": {"timeout": limits}}
        options = {"max_redirects": _MOST_REDIRECTS}
    if extra := _EXTRAS.get(url.partition("://")[0]):
        require(extra, url)
    try:
        filesystem, path = fsspec.core.url_to_fs(url, **session)
    except (ImportError, ValueError) as error:
        raise UserError(f"{url}: {error}") from error
    return filesystem, path, options


def _finish(filesystem: Any, transfer: Awaitable[Any], timeout_s: float) -> Any:  # noqa: ANN401 - fsspec has no types
    """Result of a transfer, which is broken off after `timeout_s` seconds."""

    async def limited() -> Any:  # noqa: ANN401
        try:
            return await asyncio.wait_for(transfer, timeout_s)
        except TimeoutError as error:
            raise TimeoutError(str(error) or f"not complete after {timeout_s:g} s") from error

    return fsspec.asyn.sync(filesystem.loop, limited)


class _Bound(Callback):  # type: ignore[misc]  # fsspec has no types
    """Is told by a file system of each block that it has written; ends the transfer by raising."""

    def __init__(self, limit: int, stop: Event | None = None) -> None:
        super().__init__()
        self._limit, self._left, self._stop = limit, limit, stop

    def relative_update(self, inc: int = 1) -> None:
        if self._stop is not None and self._stop.is_set():
            raise StoppedError
        self._left -= inc
        if self._left < 0:
            raise TooLargeError(f"more than {self._limit} bytes")


class _BoundedBytes(io.BytesIO):
    """Takes what a file system writes, up to a limit."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._bound = _Bound(limit)

    def write(self, data: Any) -> int:  # noqa: ANN401 - bytes of any kind
        self._bound.relative_update(len(data))
        return super().write(data)
