"""
The demo as people use it: in a browser, with its scripts and its live part.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest_twisted

from twsessions.test import test_examples
from twsessions.test.chromium import Chromium, chromium, until
from twsessions.test.test_examples import running

port = test_examples.port  # a fixture


def reads(browser: Chromium, text: str, css: str = "body") -> Callable[[], Awaitable[bool]]:
    """
    Whether C{text} can be read in the page.
    """

    async def look() -> bool:
        return text in await browser.text(css)

    return look


async def store(browser: Chromium, name: str, value: str) -> None:
    """
    Store a value by the page's form.
    """
    await browser.type("form[action=set] [name=name]", name)
    await browser.type("form[action=set] [name=value]", value)
    await browser.click("form[action=set] button")
    await until(reads(browser, f"Stored {name}.", ".flash"))


@pytest_twisted.ensureDeferred
async def test_valuesSurviveAndTheEndIsSeen(tmp_path: Path, port: int) -> None:
    url = f"http://127.0.0.1:{port}/"
    async with chromium(tmp_path) as browser:
        with running("demo", tmp_path, port):
            await browser.visit(url)
            assert await browser.text("#visits") == "1"
            await until(reads(browser, "15:00", "#left"))
            await store(browser, "color", "blue <&> gr\u00fcn")
            await store(browser, "number", "7")
            (cookie,) = await browser.cookies()
            assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Lax")
            assert await browser.run("return document.cookie") == ""
            assert await browser.errors() == []
        # It was killed, with the page's event stream open.
        with running("demo", tmp_path, port) as example:
            await browser.visit(url)
            assert await browser.text("#visits") == "4"
            rows = [row.split("\t") for row in (await browser.text("table")).splitlines()]
            assert rows == [["color", "'blue <&> gr\u00fcn'"], ["number", "7"]]
            assert await browser.text(".flash") == ""
            assert [one["value"] for one in await browser.cookies()] == [cookie["value"]]
            await browser.errors()  # of the stream, which was cut

            await browser.type("form[action=timeout] select", "5 seconds")
            await browser.click("form[action=timeout] button")
            await until(reads(browser, "It ends after 5 seconds", ".flash"))
            await until(reads(browser, "This session has ended.", ".ended"))
            assert await browser.text("dd:has(#left)") == "over"
            line = example.wait(lambda line: "of nobody ended (idle)" in line)
            assert "after 5 visits" in line
            await browser.visit(url)
            assert await browser.text("#visits") == "1"
            assert "none yet" in await browser.text("table")
            assert await browser.errors() == []


@pytest_twisted.ensureDeferred
async def test_anotherWindowSeesTheLogout(tmp_path: Path, port: int) -> None:
    url = f"http://127.0.0.1:{port}/"
    async with chromium(tmp_path) as browser:
        with running("demo", tmp_path, port) as example:
            await browser.visit(url)
            (before,) = await browser.cookies()
            await browser.type("form[action=login] [name=who]", "ann")
            await browser.click("form[action=login] button")
            await until(reads(browser, "Welcome, ann.", ".flash"))
            (after,) = await browser.cookies()
            assert after["value"] != before["value"]
            assert after["name"] == before["name"]
            first = await browser.window()

            await browser.openWindow()
            await browser.visit(url)
            await store(browser, "color", "blue")
            await browser.click("form[action=logout] button")
            await until(reads(browser, "nobody"))

            await browser.lookAt(first)
            await until(reads(browser, "This session has ended.", ".ended"))
            example.wait(lambda line: "of ann ended (logout)" in line)
            await browser.visit(url)
            assert "none yet" in await browser.text("table")
            assert await browser.errors() == []
