"""Chromium without a window, told by its own protocol over two pipes; nothing but the standard library."""

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clusterprune.errors import OutputError

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PATIENCE = 600.0
"""Seconds within which a call is answered, on a machine that does much besides."""


def installed() -> str | None:
    """Return the browser that this machine has."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """A page in the browser.

    Attributes
    ----------
    complaints
        What it wrote to its console as errors and warnings, and exceptions that nobody caught.
    requests
        What it asked for, the page itself included.
    """

    def __init__(self, reader: int, writer: int) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._reader, self._writer = reader, writer
        self._numbers = itertools.count(1)
        self._waiting = b""
        self._session: str | None = None
        target = next(one for one in self.call("Target.getTargets")["targetInfos"] if one["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol, and return its result."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._writer, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                if "error" in answer:
                    raise OutputError(f"the browser refused {method}: {answer['error']}; try another release of it")
                return answer["result"]

    def open(self, file: Path) -> None:
        """Open a file, and wait until it is loaded."""
        self.call("Page.navigate", url=file.resolve().as_uri())
        for _ in range(200):
            if self.evaluate("document.readyState") == "complete" and self.evaluate("location.protocol") == "file:":
                return
            time.sleep(0.05)
        raise OutputError(f"the browser does not load {file}; try again when the machine is less busy")

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression of JavaScript."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise OutputError(f"the page failed: {answer['exceptionDetails']}; try another release of the browser")
        return answer["result"].get("value")

    def press(self, key: str, code: int) -> None:
        """Press a key."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def look(self, width: int, height: int, *, dark: bool = False) -> bytes:
        """Return a picture (PNG) of the whole page in a window of a size."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        return base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"])

    def _next(self) -> dict[str, Any]:
        """Return the next message, having noted what it tells."""
        while b"\0" not in self._waiting:
            ready, _, _ = select.select([self._reader], [], [], PATIENCE)
            found = os.read(self._reader, 1 << 16) if ready else b""
            if not found:
                raise OutputError("the browser does not answer; try again when the machine is less busy")
            self._waiting += found
        text, _, self._waiting = self._waiting.partition(b"\0")
        message = json.loads(text)
        what, params = message.get("method", ""), message.get("params", {})
        if what == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif what == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(params["exceptionDetails"]))
        elif what == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.complaints.append(json.dumps(params["args"]))
        elif what == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(params["entry"]["text"])
        return message


@contextmanager
def page(browser: str) -> Iterator[Page]:
    """Yield a page of a browser that is started for it."""
    to_browser, writer = os.pipe()
    reader, from_browser = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        # It reads descriptor 3 and writes descriptor 4.
        arguments = [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--disable-background-networking", "--remote-debugging-pipe", f"--user-data-dir={folder}", "about:blank",
        ]  # fmt: skip
        script = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
        process = subprocess.Popen(  # noqa: S603 (the browser that is installed)
            ["/bin/bash", "-c", script, "bash", *arguments],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_browser)
        os.close(from_browser)
        try:
            yield Page(reader, writer)
        finally:
            os.close(writer)
            os.close(reader)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
