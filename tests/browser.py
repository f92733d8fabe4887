"""A headless Chromium, steered over two pipes by its DevTools protocol: no driver, no port, no package."""

import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_PATIENCE_SECONDS = 60.0

# Of a page: a promise that all its images are there, and which of its figures can be seen, in which scheme.
LOADED = "Promise.all([...document.images].map(image => image.decode())).then(() => true)"
SHOWN = """[...document.images].filter(image => image.offsetParent && image.naturalWidth > 0)
           .map(image => image.className + ' ' + image.parentElement.id)"""


def find() -> str | None:
    """Returns the program, or None where there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """A running browser; what pages log and throw is kept in ``complaints``."""

    def __init__(self, program: str, profile: Path) -> None:
        commands, self._out = os.pipe()
        self._in, answers = os.pipe()
        # Chromium reads its commands from descriptor 3 and answers on 4, where a shell can put them.
        shell = f'exec "$0" "$@" 3<&{commands} 4>&{answers}'
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
        command = ["bash", "-c", shell, program, *flags, f"--user-data-dir={profile}"]
        self._process = subprocess.Popen(command, pass_fds=(commands, answers), stderr=subprocess.DEVNULL)
        os.close(commands)
        os.close(answers)
        self._sent, self._rest = 0, b""
        self._events: list[dict[str, Any]] = []

    @property
    def complaints(self) -> list[str]:
        """Errors and warnings of the console, of the network and of scripts."""
        wanted = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        return [json.dumps(event["params"]) for event in self._events if event["method"] in wanted]

    def open(self, address: str, scheme: str = "light", media: str = "screen", width: int = 1200) -> str:
        """Opens a page and returns its session, once the page and its images are loaded."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable", session)
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", session, **size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", session, media=media, features=features)
        self.call("Page.navigate", session, url=address)
        loaded = {"method": "Page.loadEventFired", "sessionId": session}
        while not any(loaded.items() <= event.items() for event in self._events):
            self._events.append(self._receive())
        return session

    def evaluate(self, session: str, expression: str) -> Any:
        """Returns the value of a JavaScript expression, of a promise when it is kept."""
        how = {"returnByValue": True, "awaitPromise": True}
        return self.call("Runtime.evaluate", session, expression=expression, **how)["result"].get("value")

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Sends a command and returns its result."""
        self._sent += 1
        message: dict[str, Any] = {"id": self._sent, "method": method, "params": params}
        os.write(
            self._out, json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0"
        )
        while (answer := self._receive()).get("id") != self._sent:
            self._events.append(answer)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def close(self) -> None:
        """Ends the browser."""
        self.call("Browser.close")
        self._process.wait(_PATIENCE_SECONDS)
        os.close(self._out)
        os.close(self._in)

    def _receive(self) -> dict[str, Any]:
        until = time.monotonic() + _PATIENCE_SECONDS
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._in], [], [], max(0.0, until - time.monotonic()))
            chunk = os.read(self._in, 2**20) if ready else b""
            assert chunk, f"the browser said nothing for {_PATIENCE_SECONDS:g} s, or has ended"
            self._rest += chunk
        answer, self._rest = self._rest.split(b"\0", 1)
        return json.loads(answer)
