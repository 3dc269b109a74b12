"""A headless Chromium of Debian (`make browser`), driven by the DevTools protocol over a pair of pipes.

A message is JSON that a zero byte ends; Chromium reads file descriptor 3 and writes 4. No server, no port, no driver.
"""

import base64
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Self

PROGRAMS = ("chromium-headless-shell", "chromium", "google-chrome")
SCHEMES = ("light", "dark")
WIDTHS = {"desktop": 1280, "phone": 390}
# Its sandbox refuses root. The pages are our own, and no network is asked for anything.
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe")


def program() -> str | None:
    """Path of a browser; None where there is none."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


class Browser:
    """While entered, one page in a browser whose settings lie in a directory of its own.

    Attributes:
        complaints: what the console said, and what the page was refused, since the last `open`.
    """

    def __init__(self, directory: Path) -> None:
        self.complaints: list[str] = []
        self._directory = directory
        self._session: str | None = None
        self._calls = 0
        self._received = bytearray()

    def __enter__(self) -> Self:
        command = [program() or PROGRAMS[0], *OPTIONS, f"--user-data-dir={self._directory}"]
        # The shell leads standard input and output to where Chromium looks for them.
        script = 'exec "$@" 3<&0 4>&1 </dev/null >/dev/null 2>/dev/null'
        self._process = subprocess.Popen(
            ["sh", "-c", script, "sh", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"HOME": str(self._directory)},
        )
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()  # the end of its input ends it
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Result of a command of the protocol; `RuntimeError` with what the browser says of one that fails."""
        assert self._process.stdin is not None
        self._calls += 1
        message = {"id": self._calls, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._process.stdin.write(json.dumps(message).encode() + b"\0")
        self._process.stdin.flush()
        while (answer := self._read()).get("id") != self._calls:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer.get("result", {})

    def open(self, page: Path | str, width: int, scheme: str) -> None:
        """Show a file or an address in a window of a width in pixels, with a colour scheme; returns when loaded."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.complaints = []
        self.call("Page.navigate", url=page if isinstance(page, str) else page.absolute().as_uri())
        while self._read().get("method") != "Page.loadEventFired":
            pass

    def run(self, script: str) -> Any:
        """Value of a JavaScript expression on the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{script[:80]}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def photograph(self, path: Path) -> None:
        """Write the whole page as PNG."""
        taken = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(taken["data"]))

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        while b"\0" not in self._received:
            arrived = os.read(self._process.stdout.fileno(), 1 << 16)
            if not arrived:
                raise RuntimeError(f"{self._process.args}: ended with status {self._process.wait()}")
            self._received += arrived
        line, _, rest = self._received.partition(b"\0")
        self._received = rest
        message: dict[str, Any] = json.loads(line)
        if message.get("method") == "Runtime.consoleAPICalled":
            self.complaints.append(str(message["params"]["args"]))
        elif message.get("method") == "Log.entryAdded":
            self.complaints.append(message["params"]["entry"]["text"])
        elif message.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(str(message["params"]["exceptionDetails"]))
        return message
