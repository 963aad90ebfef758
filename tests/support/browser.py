"""Headless Chromium, driven as a user does: by mouse, keyboard and screen, over its own pipe.

The network is cut, except for the computer's own address.
"""

import base64
import contextlib
import json
import os
import select
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
OPTIONS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, "Space": 32, "End": 35, "Home": 36, "ArrowLeft": 37}
PATIENCE = 60.0


class Page:
    """One page of a browser. Methods wait for the browser, but not for the page's own work."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers, self._session = commands, answers, ""
        self._unread, self._number = b"", 0
        self.events: list[dict[str, Any]] = []
        """What the browser reported: {method, params}."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol; return its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session and not method.startswith(("Target.", "Browser.")):
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, (method, answer["error"])
        result: dict[str, Any] = answer["result"]
        return result

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._answers], [], [], PATIENCE)
            part = os.read(self._answers, 1 << 20) if ready else b""
            assert part, "the browser does not answer"
            self._unread += part
        text, _, self._unread = self._unread.partition(b"\0")
        answer: dict[str, Any] = json.loads(text)
        return answer

    def js(self, expression: str) -> Any:
        """Return an expression's value; a promise's once it is settled."""
        options = {"returnByValue": True, "awaitPromise": True}
        answer = self.call("Runtime.evaluate", expression=expression, **options)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, condition: str) -> Any:
        """Wait until an expression is true; return its value."""
        end = time.monotonic() + PATIENCE
        while not (value := self.js(condition)):
            assert time.monotonic() < end, (condition, self.js("document.body.innerText"))
            time.sleep(0.05)
        return value

    def text(self, selector: str) -> str:
        """Return what an element shows, in one line."""
        (shown,) = self.texts(selector)[:1]
        return " ".join(shown.split())

    def texts(self, selector: str) -> list[str]:
        """Return what each element of a selector shows."""
        every = f"[...document.querySelectorAll({json.dumps(selector)})]"
        found: list[str] = self.js(f"{every}.map((element) => element.innerText)")
        return found

    def open(self, address: str, *, width: int = 1280, dark: bool = False) -> None:
        height = 900 if width > 600 else 844
        sizes = {"width": width, "height": height, "deviceScaleFactor": 1}
        self.call("Emulation.setDeviceMetricsOverride", **sizes, mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=address)
        self.until("document.readyState === 'complete'")

    def reset(self, downloads: Path) -> None:
        """Forget what was shown and reported; downloads go to a folder."""
        self.open("about:blank")
        self.call("Page.setInterceptFileChooserDialog", enabled=False)
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=0, y=0)
        self.download_to(downloads)
        self.events.clear()

    def download_to(self, folder: Path) -> None:
        options = {"behavior": "allow", "downloadPath": str(folder), "eventsEnabled": True}
        self.call("Browser.setDownloadBehavior", **options)

    def hover(self, selector: str) -> tuple[float, float]:
        """Move the mouse onto an element; return where it is."""
        x, y = self.js(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center'}); const r = e.getBoundingClientRect();"
            "return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        return x, y

    def click(self, selector: str) -> None:
        x, y = self.hover(selector)
        button = {"x": x, "y": y, "button": "left", "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type="mousePressed", **button)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", **button)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def press(self, key: str, modifiers: int = 0) -> None:
        """Press a key of `KEYS`, or a letter; modifiers: 2 is Control, 8 is Shift."""
        code = KEYS.get(key, ord(key[0].upper()))
        name = " " if key == "Space" else key
        values: dict[str, Any] = {
            "key": name,
            "windowsVirtualKeyCode": code,
            "modifiers": modifiers,
        }
        if key in ("Enter", "Space"):
            values["text"] = "\r" if key == "Enter" else " "
        self.call("Input.dispatchKeyEvent", type="keyDown", **values)
        self.call("Input.dispatchKeyEvent", type="keyUp", **values)

    def focused(self) -> str:
        """Return the id of what has the focus, or its classes."""
        name: str = self.js("document.activeElement.id || document.activeElement.className")
        return name

    def tab_to(self, name: str) -> None:
        """Press Tab until what has an id or first class has the focus."""
        for _ in range(40):
            self.press("Tab")
            if self.focused().split(" ")[0] == name:
                return
        raise AssertionError(f"{name} is not reached by Tab")

    def choose(self, selector: str, file: Path) -> None:
        """Choose a file in an element's dialog."""
        node = self.call("Runtime.evaluate", expression=f"document.querySelector('{selector}')")
        object_id = node["result"]["objectId"]
        self.call("DOM.setFileInputFiles", files=[str(file)], objectId=object_id)

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """Start a browser whose files and downloads are in a folder; yield its page."""
    assert BROWSER
    read_command, write_command = os.pipe()
    read_answer, write_answer = os.pipe()
    # The browser reads its commands from 3 and writes to 4.
    command = shlex.join([BROWSER, *OPTIONS, f"--user-data-dir={folder / 'user'}"])
    process = subprocess.Popen(
        ["bash", "-c", f"exec {command} 3<&{read_command} 4>&{write_answer}"],
        pass_fds=(read_command, write_answer),
        stderr=subprocess.DEVNULL,
    )
    os.close(read_command)
    os.close(write_answer)
    try:
        page = Page(write_command, read_answer)
        page.download_to(folder)
        yield page
    finally:
        process.terminate()
        process.wait()
        os.close(write_command)
        os.close(read_answer)
