"""The guard in front of a service: who may ask, how much and how long; it counts what is answered.

A request's body is read here as a whole, up to the limit, so that behind the guard nobody waits for a slow sender.
Every refusal is JSON, `{"error": TEXT}`.
"""

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import Callable, Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from launch.serve.limits import Limits
from launch.serve.metrics import Metrics

logger = logging.getLogger(__name__)

LOCAL = ("localhost", "127.0.0.1", "[::1]")
_PIECE_BYTES = 1 << 16  # of a body, that the form is read from at once


class Guard:
    """An ASGI application around another.

    Args:
        app: the service.
        limits: of requests.
        metrics: count answers.
        paths: that exist; others are counted as one.
        open_paths: those that need no token.
        busy: whether one photo more would be refused.
        token: that others need; None: none, and then only pages and programs of this machine are answered.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        metrics: Metrics,
        paths: Collection[str],
        open_paths: Collection[str],
        busy: Callable[[], bool],
        token: str | None,
    ) -> None:
        self._app, self._limits, self._metrics, self._busy = app, limits, metrics, busy
        self._paths, self._open = frozenset(paths), frozenset(open_paths)
        self._token = None if token is None else _digest(f"Bearer {token}")
        self._held = 0  # bytes of bodies in memory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._answer(scope, receive, counted)
        except HTTPException as refusal:
            if status:  # the client does not read its answer: the connection is closed
                return
            # The rest of its body is not wanted: the connection ends.
            response = JSONResponse({"error": refusal.detail}, refusal.status_code, {**(refusal.headers or {}), **_END})
            await response(scope, receive, counted)
        except Exception:
            if status:
                raise
            logger.exception("%s failed", scope["path"])
            await JSONResponse({"error": "a fault of the service; its log has more"}, 500, _END)(
                scope, receive, counted
            )
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.requests.labels(path, str(status)).inc()
            self._metrics.seconds.labels(path).observe(time.perf_counter() - began)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        self._admit(scope["path"], headers)
        post = scope["method"] == "POST"
        if post and self._busy():
            raise full()
        size = 0
        try:
            async with asyncio.timeout(self._limits.request_s):
                body = bytearray()
                try:
                    async with asyncio.timeout(self._limits.request_s / 2):
                        self._check_length(headers)
                        while True:
                            message = await receive()
                            if message["type"] == "http.disconnect":
                                raise HTTPException(400, "the client left")
                            body += message.get("body", b"")
                            self._held += len(body) - size
                            size = len(body)
                            self._check_size(size)
                            if not message.get("more_body", False):
                                break
                except TimeoutError:
                    raise HTTPException(
                        408, f"the body did not arrive within {self._limits.request_s / 2:g} s"
                    ) from None
                del message  # or its piece would be held beside the body
                await self._app(scope, _replay(body, receive), send)
        except TimeoutError:
            raise HTTPException(503, f"no answer within {self._limits.request_s:g} s", _LATER) from None
        finally:
            self._held -= size

    def _admit(self, path: str, headers: Headers) -> None:
        """Refuse who may not ask.

        Raises:
            HTTPException: 401 without the token, 403 for pages of other sites.
        """
        origin, host = headers.get("origin"), headers.get("host", "")
        if origin is not None and _host(origin) != host.lower():
            raise HTTPException(403, "a page of another site may not ask")
        if self._token is None:
            # A foreign name that leads to this machine is a foreign page's (DNS rebinding).
            if host.lower().rpartition(":")[0] not in LOCAL and host.lower() not in LOCAL:
                raise HTTPException(403, f"expected one of {', '.join(LOCAL)} as host; others need a token")
        elif path not in self._open and not hmac.compare_digest(_digest(headers.get("authorization", "")), self._token):
            raise HTTPException(401, "expected the token: Authorization: Bearer TOKEN", {"www-authenticate": "Bearer"})

    def _check_length(self, headers: Headers) -> None:
        """Refuse a body that announces itself as too large before any of it is read."""
        announced = headers.get("content-length", "0")
        if announced.isascii() and announced.isdigit():
            self._check_size(int(announced))

    def _check_size(self, size: int) -> None:
        if size > self._limits.request_bytes:
            raise HTTPException(413, f"more than {self._limits.request_bytes:,} bytes in one request")
        if self._held > self._limits.held_bytes:
            raise full()


def full() -> HTTPException:
    """The refusal while too much waits."""
    return HTTPException(429, "too many wait already; try again", _LATER)


def fault(path: str, error: Exception) -> JSONResponse:
    """The answer where the service is wrong; what is wrong goes to its log alone."""
    logger.error("%s failed", path, exc_info=error)
    return JSONResponse({"error": "a fault of the service; its log has more"}, 500, _END)


_LATER = {"retry-after": "1"}
_END = {"connection": "close"}


def _digest(text: str) -> bytes:
    """Of one length whatever the text: the comparison takes the same time for any."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def _host(origin: str) -> str:
    """Host and port of an `Origin` header; empty where it has none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _replay(body: bytearray, receive: Receive) -> Receive:
    """A `receive` that gives the body, piece by piece, and then what the connection says.

    What is given is held here no more: while a request waits, its photo is in memory once.
    """
    given = False

    async def replayed() -> Message:
        nonlocal given
        if given:
            return await receive()
        await asyncio.sleep(0)  # taking a form apart may take seconds: the others go on meanwhile, and its time ends
        piece = bytes(body[:_PIECE_BYTES])
        del body[:_PIECE_BYTES]
        given = not body
        return {"type": "http.request", "body": piece, "more_body": not given}

    return replayed
