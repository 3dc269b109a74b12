"""The server of a service: one process, plain HTTP, and an end that finishes what it took.

uvicorn speaks HTTP. What it does not bound is bounded here: a connection without a whole request head, one whose answer
is not read, and their number.
"""

import asyncio
import contextlib
import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Iterator
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from dist_train.errors import UserError
from dist_train.runtime.stop_signal import INTERRUPTED_STATUS
from dist_train.runtime.terminal import echo
from launch.serve.limits import Limits

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_MOST_HEAD_S = 10.0
_BACKLOG = 128
_TOO_MANY = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n"
_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


def serve(app: ASGIApp, host: str, port: int, limits: Limits) -> None:
    """Serve until a signal comes; then finish what was taken. A second signal ends the process at once.

    Args:
        app: that answers.
        host: name or address to listen at.
        port: to listen at; 0 for any that is free.
        limits: of connections and time.

    Raises:
        UserError: nobody can listen there.
    """
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    listener = _listener(host, port)
    config = uvicorn.Config(
        app,
        http=_protocol(limits),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=int(_MOST_HEAD_S),
        timeout_graceful_shutdown=int(limits.request_s) + 5,
    )
    with contextlib.closing(listener):
        asyncio.run(_Server(config).serve(sockets=[listener]))


def is_local(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Server(uvicorn.Server):
    """uvicorn's server, with signals that end in status 0, and one line that says where it is."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for each in sockets or []:
            host, port = each.getsockname()[:2]
            echo(f"serving at http://{f'[{host}]' if ':' in host else host}:{port}")

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.should_exit:
            os._exit(INTERRUPTED_STATUS)
        self.should_exit = True


def _protocol(limits: Limits) -> type[H11Protocol]:
    """The protocol of a connection: that of uvicorn, with limits."""
    idle_s = min(_MOST_HEAD_S, limits.request_s / 2)

    class Bounded(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
            super().connection_made(transport)
            if len(self.connections) > limits.connections:
                transport.write(_TOO_MANY)
                transport.close()
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            if self._timer is not None:
                self._timer.cancel()
            super().connection_lost(exc)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._watch()

        def data_received(self, data: bytes) -> None:
            if not self.transport.is_closing():
                super().data_received(data)

        def _watch(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self.loop.call_later(idle_s, self._look)

        def _look(self) -> None:
            """End a connection that asks nothing, or does not take what it was told."""
            if self.transport.is_closing() or self.transport.get_write_buffer_size():
                if self.cycle is None or self.cycle.response_complete or self.transport.is_closing():
                    self.transport.abort()
                    return
            elif self.cycle is None or self.cycle.response_complete:
                self.transport.write(_TOO_SLOW)
                self.transport.close()
            self._watch()

    return Bounded


def _listener(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        return socket.create_server(_pair(address), family=family, backlog=_BACKLOG)
    except (OSError, UnicodeError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--host {host} --port {port}: cannot listen there: {reason}; name another") from error


def _pair(address: Any) -> tuple[str, int]:  # noqa: ANN401 - of either family
    return str(address[0]), int(address[1])
