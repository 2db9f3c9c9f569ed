"""A small WebDriver client: headless Chromium by `chromedriver`."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

DRIVER = shutil.which("chromedriver")
FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --window-size=1000,800""".split()
ENTER, ESCAPE = "\ue007", "\ue00c"
SECONDS = 10.0  # for something to appear


class Browser:
    """One window."""

    def __init__(self, http: httpx.Client, session: str) -> None:
        self._http, self._session = http, f"/session/{session}"

    def command(self, path: str, **body: Any) -> Any:
        """A command of the protocol. Raises AssertionError with the browser's message."""
        response = self._http.post(f"{self._session}/{path}", json=body)
        value = response.json()["value"]
        assert response.is_success, value
        return value

    def open(self, url: str) -> None:
        """Load a page."""
        self.command("url", url=url)

    def run(self, script: str, *arguments: Any) -> Any:
        """The value that a script returns; its arguments are `arguments[0]` and so on."""
        return self.command("execute/sync", script=script, args=arguments)

    def until(self, script: str, *arguments: Any) -> Any:
        """The value of an expression, once it is true."""
        end = time.monotonic() + SECONDS
        while not (value := self.run(f"return {script}", *arguments)):
            assert time.monotonic() < end, (
                f"{script}: {value!r}\n{self.run('return document.body.innerText')}"
            )
            time.sleep(0.02)
        return value

    def find(self, selector: str) -> str:
        """The path of an element."""
        found = self.command("element", using="css selector", value=selector)
        return f"element/{next(iter(found.values()))}"

    def click(self, selector: str) -> None:
        """Click an element, as a user does: it has to be in sight."""
        self.command(f"{self.find(selector)}/click")

    def type(self, selector: str, text: str) -> None:
        """Type into an element."""
        self.command(f"{self.find(selector)}/value", text=text)

    def press(self, text: str) -> None:
        """Type into what has the focus."""
        keys = [{"type": kind, "value": key} for key in text for kind in ("keyDown", "keyUp")]
        self.command("actions", actions=[{"type": "key", "id": "keyboard", "actions": keys}])

    def text(self, selector: str) -> str:
        """The text of an element, in sight or not."""
        return str(self.run("return document.querySelector(arguments[0]).textContent", selector))

    def emulate(self, method: str, **parameters: Any) -> Any:
        """A command of the developer tools."""
        return self.command("goog/cdp/execute", cmd=method, params=parameters)

    def log(self) -> list[str]:
        """Messages of the console since the last call, violations of policies among them."""
        return [entry["message"] for entry in self.command("se/log", type="browser")]

    def requested(self) -> set[str]:
        """URLs that the page asked for since the last call."""
        entries = self.command("se/log", type="performance")
        events = [json.loads(entry["message"])["message"] for entry in entries]
        sent = [event for event in events if event["method"] == "Network.requestWillBeSent"]
        urls = {event["params"]["request"]["url"] for event in sent}
        return {url for url in urls if not url.startswith("chrome:")}  # the empty tab


@contextmanager
def driven(folder: Path) -> Iterator[Browser]:
    """A browser that keeps its files in a folder."""
    assert DRIVER is not None
    options = {"args": [*FLAGS, f"--user-data-dir={folder}"]}
    logging = {"browser": "ALL", "performance": "ALL"}
    wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": logging}
    with subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, text=True) as process:
        try:
            with httpx.Client(base_url=_address(process), timeout=60) as http:
                body = {"capabilities": {"alwaysMatch": wanted}}
                answer = http.post("/session", json=body).json()["value"]
                assert "sessionId" in answer, answer
                try:
                    yield Browser(http, answer["sessionId"])
                finally:
                    http.delete(f"/session/{answer['sessionId']}")
        finally:
            process.terminate()


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"on port (\d+)\.", line):
            return f"http://127.0.0.1:{found[1]}"
    raise AssertionError("chromedriver does not start")
