"""
The examples, each run by twistd as a reader would run it.
"""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlencode

import pytest

import twsessions
from twsessions.test.places import place

ROOT = Path(twsessions.__file__).parents[1]
EXAMPLES = ROOT / "examples"
PATIENCE = 20.0  # seconds


class Example:
    """
    A running example.
    """

    def __init__(self, name: str, directory: Path, port: int, **settings: str) -> None:
        self.port = port
        self.log = directory / f"{name}.log"
        self._output = self.log.open("ab")
        environment = dict(os.environ, PORT=str(port), PYTHONPATH=str(ROOT), **settings)
        run = "from twisted.scripts.twistd import run; run()"
        arguments = ["--pidfile=", "-ny", str(EXAMPLES / f"{name}.py")]
        already = len(self.lines())
        self.process = subprocess.Popen(
            [sys.executable, "-c", run, *arguments],
            cwd=directory,
            env=environment,
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )
        self.wait(lambda line: f"starting on {port}" in line, since=already)

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines()

    def wait(self, wanted: Callable[[str], object], since: int = 0) -> str:
        """
        The first line of the log that is wanted.
        """
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            for line in self.lines()[since:]:
                if wanted(line):
                    return line
            if self.process.poll() is not None:
                break
            select.select([], [], [], 0.02)  # only between two looks; nothing depends on it
        raise AssertionError("not in the log:\n" + self.log.read_text())

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        self._output.close()


class Visitor:
    """
    A browser without pictures.
    """

    def __init__(self, port: int) -> None:
        self.port, self.cookie = port, ""

    def get(self, path: str = "/") -> str:
        return self._ask("GET", path)[1]

    def post(self, path: str, **form: str) -> str:
        status, body, location = self._ask("POST", path, urlencode(form))
        return self.get(location) if status in (302, 303) else body

    def _ask(self, method: str, path: str, body: str | None = None) -> tuple[int, str, str]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        headers = {"Cookie": self.cookie} if self.cookie else {}
        if body is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            text = response.read().decode()
        finally:
            connection.close()
        for line in response.headers.get_all("set-cookie", []):
            self.cookie = line.partition(";")[0] if "Max-Age=0" not in line else ""
        return response.status, text, response.headers.get("location", "/")


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        number: int = free.getsockname()[1]
    return number


@contextmanager
def running(name: str, directory: Path, port: int, **settings: str) -> Iterator[Example]:
    example = Example(name, directory, port, **settings)
    try:
        yield example
    finally:
        example.kill()


def test_everyExampleIsTested() -> None:
    named = {path.stem for path in EXAMPLES.glob("*.py")}
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert named == set(re.findall(r'(?:running\(|"examples" / )"(\w+)', tests))


def test_everyPageTellsItsCharset() -> None:
    """
    Without it a browser sends names in another one.
    """
    for path in EXAMPLES.glob("*.py"):
        text = path.read_text()
        assert text.count("<!doctype html>") == text.count('<meta charset="utf-8">'), path


def test_expirations(tmp_path: Path, port: int) -> None:
    with running("expirations", tmp_path, port) as example:
        visitor = Visitor(port)
        assert [visitor.get() for _ in range(3)] == ["visits: 1\n", "visits: 2\n", "visits: 3\n"]
        visitor.get("/favicon.ico")  # for which browsers ask, is no visit
        example.wait(lambda line: "a session ended after 3 visits" in line)
        assert visitor.get() == "visits: 1\n"


def test_expirationsPersistent(tmp_path: Path, port: int) -> None:
    visitor = Visitor(port)
    with running("expirations_persistent", tmp_path, port):
        assert visitor.get() == "visits: 1\n"
        visitor.get("/favicon.ico")
    with running("expirations_persistent", tmp_path, port) as example:
        assert visitor.get() == "visits: 2\n"
        example.wait(lambda line: "(idle) after 2 visits" in line)


def test_cart(tmp_path: Path, port: int) -> None:
    visitor = Visitor(port)
    with running("cart", tmp_path, port):
        assert visitor.get("/?add=book") == "in your cart: book\n"
        assert visitor.get("/?add=pen") == "in your cart: book, pen\n"
    with running("cart", tmp_path, port):
        assert visitor.get() == "in your cart: book, pen\n"


def test_klein(tmp_path: Path, port: int) -> None:
    visitor = Visitor(port)
    with running("klein_login", tmp_path, port):
        assert "You are nobody" in visitor.get()
        before = visitor.cookie
        assert "You are ann. Welcome!" in visitor.post("/login", name="ann")
        assert "You are ann. <" in visitor.get()
        thief = Visitor(port)
        thief.cookie = before
        assert "You are nobody" in thief.get()
        stolen = visitor.cookie
        assert "You are nobody" in visitor.post("/logout")
        thief.cookie = stolen
        assert "You are nobody" in thief.get()


@pytest.mark.parametrize("kind", ["memcached", "postgresql", "redis", "sqlite"])
def test_processes(tmp_path: Path, port: int, kind: str) -> None:
    """
    Log in on one, read on another, log out on a third. Those that have had
    their turn are stopped, so that another one must answer.
    """
    visitor, thief = Visitor(port), Visitor(port)
    stopped: list[int] = []

    def pid(page: str) -> int:
        found = re.search(r"process (\d+)", page)
        assert found is not None, page
        return int(found[1])

    def another(page: str) -> None:
        stopped.append(pid(page))
        os.kill(stopped[-1], signal.SIGSTOP)

    with (
        place(kind, tmp_path) as url,
        running("processes", tmp_path, port, PROCESSES="3", STORE=url) as example,
    ):
        try:
            until = time.monotonic() + PATIENCE
            while len(re.findall("starting on", example.log.read_text())) < 3:
                assert time.monotonic() < until
                select.select([], [], [], 0.02)
            page = visitor.post("/login", name="ann")
            assert "You are ann" in page
            another(page)
            page = visitor.get()
            assert "You are ann" in page and "asked 2 times" in page
            another(page)
            thief.cookie = visitor.cookie
            page = visitor.post("/logout")
            assert "You are nobody" in page
            last = pid(page)
            assert last not in stopped and len(set(stopped)) == 2
            for process in stopped:
                os.kill(process, signal.SIGCONT)
            os.kill(last, signal.SIGSTOP)
            stopped.append(last)
            assert "You are nobody" in thief.get()
        finally:
            for process in stopped:
                os.kill(process, signal.SIGCONT)
        # One that dies is started again; all end with the first.
        first = example.process.pid
        other = next(process for process in stopped if process != first)
        os.kill(other, signal.SIGKILL)
        example.wait(lambda line: "a process has ended" in line)
        example.process.terminate()
        example.process.wait(PATIENCE)
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", port), 1)


def test_demo(tmp_path: Path, port: int) -> None:
    visitor = Visitor(port)

    def token() -> str:
        found = re.search(r'name="token" value="([^"]+)"', visitor.get())
        assert found is not None
        return found[1]

    with running("demo", tmp_path, port):
        assert "Stored color." in visitor.post("/set", token=token(), name="color", value="blue")
        assert "not from here" in visitor.post("/set", token="x", name="color", value="red")
        assert "Welcome, &lt;ann&gt;" in visitor.post("/login", token=token(), who="<ann>")
    with running("demo", tmp_path, port) as example:  # it was killed
        page = visitor.get()
        assert "&#x27;blue&#x27;" in page and "&lt;ann&gt;" in page
        visitor.post("/timeout", token=token(), seconds="5")
        assert "event: ended" in visitor.get("/events")
        example.wait(lambda line: "of <ann> ended (idle)" in line)
        # So does a page whose session ended while the server was down; it makes no other.
        before = visitor.cookie
        assert "event: ended" in visitor.get("/events") and visitor.cookie == before
        assert "blue" not in visitor.get()
