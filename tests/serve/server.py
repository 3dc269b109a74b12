"""A server of ours in a process of its own, and what asks it over the network."""

import os
import signal
import socket
import tempfile
import time
from pathlib import Path
from typing import Any, Self

import httpx

from tests.launch.recipes import _command, environment
from tests.ranks import forked


class Server:
    """While entered, `headcount serve ARGUMENTS` at a free port.

    Attributes:
        url: where it is.
        port: of it.
    """

    def __init__(self, *arguments: str | Path) -> None:
        self._arguments = ["headcount", "serve", *map(str, arguments), "--port", "0"]

    def __enter__(self) -> Self:
        self._output = tempfile.TemporaryFile("w+")
        outputs = self._output.fileno(), self._output.fileno()
        self.process = forked(_command, self._arguments, variables=environment(), outputs=outputs)
        deadline = time.monotonic() + 60
        while "serving at " not in self.said():
            assert self.process.is_alive(), self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.02)
        self.url = self.said().partition("serving at ")[2].split()[0]
        self.port = int(self.url.rpartition(":")[2])
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.join()
        self._output.close()

    def said(self) -> str:
        """All that it printed."""
        self._output.seek(0)
        return self._output.read()

    def signal(self, number: int = signal.SIGTERM) -> None:
        """Send it a signal."""
        os.kill(self.process.pid or 0, number)

    def ended(self, wait_s: float = 30) -> int | None:
        """Its exit status; None while it runs."""
        self.process.join(wait_s)
        return self.process.exitcode

    def ask(self, path: str, method: str = "POST", **request: Any) -> httpx.Response:
        """The answer to one request."""
        return httpx.request(method, self.url + path, timeout=60, **request)

    def connect(self, text: bytes = b"") -> socket.socket:
        """A connection on which `text` was sent."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        connection.sendall(text)
        return connection


def everything(connection: socket.socket) -> bytes:
    """What comes on a connection until its end."""
    found = b""
    try:
        while data := connection.recv(1 << 16):
            found += data
    except ConnectionResetError:
        pass
    return found
