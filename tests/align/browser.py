"""Chromium without a window, driven by its own protocol: as much of it as the tests need."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import time
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import aiohttp


class Browser:
    """One tab. Use it as a context manager."""

    def __init__(self, chromium: str, profile: Path):
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
        options += [f"--user-data-dir={profile}", "--remote-debugging-port=0", "about:blank"]
        self._process = subprocess.Popen([chromium, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port = profile / "DevToolsActivePort"
        self._wait(lambda: port.is_file() and len(port.read_text().split()) == 2)
        self._port = port.read_text().split()[0]
        self._loop = asyncio.new_event_loop()
        self._number = 0

    def __enter__(self) -> Browser:
        tabs: list[dict[str, Any]] = []

        def found() -> bool:
            tabs[:] = json.loads(urlopen(f"http://127.0.0.1:{self._port}/json", timeout=30).read())
            return any(one["type"] == "page" for one in tabs)

        self._wait(found)
        address = next(one["webSocketDebuggerUrl"] for one in tabs if one["type"] == "page")
        self._loop.run_until_complete(self._connect(address))
        return self

    def __exit__(self, *exception: object) -> None:
        self._loop.run_until_complete(self._session.close())
        self._loop.close()
        self._process.terminate()
        self._process.wait(30)

    async def _connect(self, address: str) -> None:
        self._session = aiohttp.ClientSession()
        self._socket = await self._session.ws_connect(address, max_msg_size=0)

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        async def call() -> dict[str, Any]:
            self._number += 1
            await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
            while True:
                found = await self._socket.receive_json(timeout=60)
                if found.get("id") == self._number:
                    assert "error" not in found, found
                    return found["result"]

        return self._loop.run_until_complete(call())

    def open(self, address: str | None, width: int, height: int, dark: bool) -> None:
        """Open an address, or only change the window."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[theme])
        if address is not None:
            self._call("Page.navigate", url=address)
            self.until("document.readyState === 'complete' && location.protocol === 'http:'")

    def do(self, script: str) -> Any:
        """What a piece of JavaScript gives, as plain values."""
        found = self._call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, script: str) -> None:
        """Wait until it gives something true."""
        self._wait(lambda: self.do(f"Boolean({script})"), script)

    def type(self, text: str) -> None:
        """Type into what has the focus, and press Enter."""
        self._call("Input.insertText", text=text)
        for kind in ("keyDown", "keyUp"):
            self._call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13)

    def picture(self, path: Path) -> None:
        """A picture of what is in the window."""
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot")["data"]))

    def _wait(self, ready: Any, what: str = "the browser") -> None:
        deadline = time.monotonic() + 100
        while not ready():
            assert time.monotonic() < deadline, what
            time.sleep(0.1)
