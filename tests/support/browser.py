"""A headless Chromium, spoken to in its DevTools protocol over a pipe. https://chromedevtools.github.io/devtools-protocol/

Standard library only. `find()` tells where a Chromium is, or None.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any


def find() -> str | None:
    """The path of a Chromium or Chrome, None where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


class Browser:
    """One page. `complaints` collects what the console reports as errors, and uncaught exceptions."""

    def __init__(self, program: str, profile: Path) -> None:
        self.complaints: list[str] = []
        self.number = 0
        self.pending = b""
        theirs_in, self.out = os.pipe()
        self.back, theirs_out = os.pipe()

        def place() -> None:  # the protocol of --remote-debugging-pipe: read from 3, write to 4
            ends = os.dup(theirs_in), os.dup(theirs_out)
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        self.process = subprocess.Popen(
            [
                program,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--window-size=1300,900",
                f"--user-data-dir={profile}",
                "--remote-debugging-pipe",
                "about:blank",
            ],
            preexec_fn=place,  # noqa: PLW1509 - two file descriptors, before anything runs
            close_fds=False,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        target = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self.session: str | None = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    session: str | None = None
    loaded = False

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.terminate()
        self.process.wait(30)
        os.close(self.out)
        os.close(self.back)

    def call(self, method: str, **parameters: Any) -> Any:
        """One command and its result."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while (answer := self.receive()).get("id") != self.number:
            self.hear(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def receive(self) -> dict[str, Any]:
        while b"\0" not in self.pending:
            data = os.read(self.back, 1 << 16)
            if not data:
                raise RuntimeError("the browser has ended")
            self.pending += data
        message, _, self.pending = self.pending.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def hear(self, event: dict[str, Any]) -> None:
        told = event.get("params", {})
        self.loaded = self.loaded or event.get("method") == "Page.loadEventFired"
        if event.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(told["exceptionDetails"]))
        elif event.get("method") == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.complaints.append(told["entry"]["text"])
        elif event.get("method") == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning"):
            self.complaints.append(str(told["args"]))

    def open(self, path: Path, link: str = "") -> float:
        """Load a page, `link` behind its address; the milliseconds until it was ready, as the browser counts them."""
        self.loaded = False
        self.call("Page.navigate", url="about:blank")  # a link alone would not load the page again
        while not self.loaded:
            self.hear(self.receive())
        self.loaded = False
        self.call("Page.navigate", url=path.as_uri() + link)
        while not self.loaded:
            self.hear(self.receive())
        while not (took := self.value("performance.getEntriesByType('navigation')[0].duration")):
            pass
        return float(took)

    def value(self, expression: str) -> Any:
        """The value of some JavaScript."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"]))
        return found["result"].get("value")

    def press(self, *keys: str) -> None:
        for key in keys:
            text = {"Enter": "\r", " ": " "}.get(key, key if len(key) == 1 else "")
            code = {"Tab": 9, "Enter": 13, "Escape": 27}.get(key, 0)
            self.call("Input.dispatchKeyEvent", type="keyDown", key=key, text=text, windowsVirtualKeyCode=code)
            self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def show(self, width: int, height: int, dark: bool = False, media: str = "screen") -> None:
        """The size of the window in CSS pixels, the colours that its reader prefers, and `print` for paper."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        colours = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media=media, features=[colours])

    def click(self, selector: str) -> None:
        """A click of the mouse into the middle of the first element."""
        place = self.value(
            f"(() => {{ const made = document.querySelector({json.dumps(selector)}); made.scrollIntoView({{block: 'center'}});"
            " const box = made.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))
