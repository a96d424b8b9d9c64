"""A browser for tests: chromedriver's own protocol (W3C WebDriver, JSON over HTTP), so that no package is needed."""

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import pytest

FLAGS = "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync --force-color-profile=srgb"
OPTIONS = {
    "goog:chromeOptions": {"args": FLAGS.split()},
    "goog:loggingPrefs": {"browser": "ALL"},
}


class Browser:
    """One window."""

    def __init__(self, address: str) -> None:
        self.address = address
        reply = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": OPTIONS}})
        self.session = f"/session/{reply['sessionId']}"

    def open(self, where: "Path | str") -> None:
        """Load a file or an address, and wait until it has loaded."""
        address = where.as_uri() if isinstance(where, Path) else where
        self._ask("POST", f"{self.session}/url", {"url": address})

    def run(self, script: str, *arguments: Any) -> Any:
        """Run JavaScript in the page, `arguments[0]` is the first argument, and return what it returns."""
        return self._ask("POST", f"{self.session}/execute/sync", {"script": script, "args": list(arguments)})

    def wait(self, script: str, seconds: float = 60) -> Any:
        """Run JavaScript until it returns something true, and return that."""
        end = time.monotonic() + seconds
        while not (found := self.run(script)):
            assert time.monotonic() < end, f"{seconds} seconds long not true: {script}"
            time.sleep(0.1)
        return found

    def resize(self, width: int, height: int = 900) -> None:
        """Make the page so many pixels wide; Chromium's windows are no narrower than 500, its devices are."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        command = {"cmd": "Emulation.setDeviceMetricsOverride", "params": metrics}
        self._ask("POST", f"{self.session}/goog/cdp/execute", command)

    def errors(self) -> list[str]:
        """Return what the page complained about in the console since the last time."""
        return [entry["message"] for entry in self._ask("POST", f"{self.session}/se/log", {"type": "browser"})]

    def picture(self, path: Path) -> None:
        """Save what is to be seen as PNG."""
        path.write_bytes(base64.b64decode(self._ask("GET", f"{self.session}/screenshot")))

    def close(self) -> None:
        """End the session."""
        self._ask("DELETE", self.session)

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = Request(self.address + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urlopen(request, timeout=120) as reply:
                return json.load(reply)["value"]
        except HTTPError as error:
            raise AssertionError(json.load(error)["value"]["message"]) from error


@contextmanager
def open_browser(folder: Path) -> Iterator[Browser]:
    """Start Chromium with a fresh profile in a folder; skip the test where there is none."""
    driver = shutil.which("chromedriver")
    if driver is None or not (shutil.which("chromium") or shutil.which("google-chrome")):
        pytest.skip("chromium and chromedriver are not installed; the page is tested in them")
    log = folder / "chromedriver.log"
    with log.open("w") as out:
        server = subprocess.Popen([driver, "--port=0"], stdout=out, stderr=subprocess.STDOUT, cwd=folder)
    try:
        browser = Browser(_address(server, log))
        try:
            yield browser
        finally:
            browser.close()
    finally:
        server.terminate()
        server.wait(timeout=30)


def _address(server: "subprocess.Popen[bytes]", log: Path) -> str:
    """Wait for the line that names the port, and until somebody listens there."""
    for _ in range(300):
        assert server.poll() is None, log.read_text()
        _, _, rest = log.read_text().partition("started successfully on port ")
        if rest:
            address = f"http://127.0.0.1:{rest.split('.')[0].strip()}"
            try:
                urlopen(f"{address}/status", timeout=10).close()
            except URLError:
                pass
            else:
                return address
        time.sleep(0.1)
    raise AssertionError(log.read_text())
