"""
A real browser for tests: headless Chromium, by the WebDriver protocol.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from treq.client import HTTPClient
from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.web.client import Agent

__all__ = ["Chromium", "chromium", "until"]

T = TypeVar("T")

PATIENCE = 60.0  # seconds; a browser starts slowly on a busy machine
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # so the W3C calls a reference to one
_ARGUMENTS = [
    "--headless",
    "--no-sandbox",  # its sandbox does not run as root
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
]


async def until(ask: Callable[[], Awaitable[T]], patience: float = PATIENCE) -> T:
    """
    Ask again and again until the answer is true.

    @return: that answer.
    """
    ends = reactor.seconds() + patience
    while not (answer := await ask()):
        if reactor.seconds() > ends:
            raise AssertionError(f"after {patience} seconds still {answer!r}")
        await deferLater(reactor, 0.05)
    return answer


class Chromium:
    """
    A browser with one or more windows, one of which is looked at.
    """

    def __init__(self, driver: str) -> None:
        """
        @param driver: the URL of the driver.
        """
        self._driver = driver
        self._session = driver + "/session"
        # No pool: no connection is left when the test has ended.
        self._http = HTTPClient(Agent(reactor, connectTimeout=PATIENCE))

    async def _do(self, method: str, path: str, what: dict[str, Any] | None = None) -> Any:
        url, patience = self._session + path, 2 * PATIENCE
        if method == "POST":
            response = await self._http.post(url, json=what or {}, timeout=patience)
        else:
            response = await self._http.request(method, url, timeout=patience)
        value = (await response.json())["value"]
        if response.code != 200:
            raise AssertionError(f"{method} {path}: {value['error']}: {value['message']}")
        return value

    async def start(self, profile: Path) -> None:
        """
        Start it.

        @param profile: a directory that it makes.
        """
        options = {"args": [*_ARGUMENTS, f"--user-data-dir={profile}"]}
        wanted = {
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "SEVERE"},
            "timeouts": {"pageLoad": int(1000 * PATIENCE), "script": int(1000 * PATIENCE)},
        }
        started = await self._do("POST", "", {"capabilities": {"alwaysMatch": wanted}})
        self._session += "/" + started["sessionId"]

    async def stop(self) -> None:
        """
        End it, as its user would.
        """
        await self._do("DELETE", "")

    async def visit(self, url: str) -> None:
        """
        Go to a page, and wait until it has been loaded.
        """
        await self._do("POST", "/url", {"url": url})

    async def run(self, script: str, *arguments: object) -> Any:
        """
        Run the body of a JavaScript function in the page.

        @return: what it returns.
        """
        return await self._do("POST", "/execute/sync", {"script": script, "args": arguments})

    async def text(self, css: str = "body") -> str:
        """
        What can be read in an element; nothing if there is none.
        """
        got = await self.run("return document.querySelector(arguments[0])?.innerText", css)
        return got or ""

    async def _element(self, css: str) -> str:
        found = await self._do("POST", "/element", {"using": "css selector", "value": css})
        return f"/element/{found[_ELEMENT]}"

    async def type(self, css: str, text: str) -> None:
        """
        Type into a field; an option of a selection is chosen by its text.
        """
        await self._do("POST", await self._element(css) + "/value", {"text": text})

    async def click(self, css: str) -> None:
        """
        Click on an element; if another page comes, wait until it has been loaded.
        """
        await self._do("POST", await self._element(css) + "/click")

    async def cookies(self) -> list[dict[str, Any]]:
        """
        The page's cookies, those too that its scripts cannot see.
        """
        cookies: list[dict[str, Any]] = await self._do("GET", "/cookie")
        return cookies

    async def window(self) -> str:
        """
        The name of the window that is looked at.
        """
        name: str = await self._do("GET", "/window")
        return name

    async def openWindow(self) -> None:
        """
        Open another window, and look at that one.
        """
        await self.lookAt((await self._do("POST", "/window/new", {"type": "tab"}))["handle"])

    async def lookAt(self, window: str) -> None:
        """
        Look at another window.
        """
        await self._do("POST", "/window", {"handle": window})

    async def errors(self) -> list[str]:
        """
        What it has complained about since it was asked last, but for a missing
        icon, for which no page has asked.
        """
        log = await self._do("POST", "/se/log", {"type": "browser"})
        return [one["message"] for one in log if "/favicon.ico " not in one["message"]]


@asynccontextmanager
async def chromium(directory: Path) -> AsyncIterator[Chromium]:
    """
    A running browser. Where there is none the test is skipped, except under
    continuous integration.

    @param directory: an empty one, for its profile and its driver's log.
    """
    driver, browser = shutil.which("chromedriver"), shutil.which("chromium")
    if driver is None or browser is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("needs chromium and chromedriver")
    log = directory / "chromedriver.log"
    with log.open("wb") as output:
        # A session of its own: all that it starts can be killed together.
        process = subprocess.Popen(
            [driver, "--port=0"], stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )

    async def port() -> str:
        assert process.poll() is None, log.read_text()
        found = re.search(r"started successfully on port (\d+)", log.read_text())
        return found[1] if found else ""

    try:
        chromium = Chromium(f"http://127.0.0.1:{await until(port)}")
        await chromium.start(directory / "profile")
        yield chromium
        await chromium.stop()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
