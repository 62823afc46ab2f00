"""
What the documentation shows works, and what it states is so.
"""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.web.resource import Resource
from twisted.web.server import Site

import twsessions
from twsessions import CookiePolicy, Session, SessionSite
from twsessions.sockjs import SockJSResource, SockJSSettings
from twsessions.testing import Browser
from twsessions.web.settings import Settings

ROOT = Path(twsessions.__file__).parents[1]
PAGES = [ROOT / "README.rst", *sorted((ROOT / "docs").rglob("*.rst"))]
SNIPPET = re.compile(r"^\.\. code-block:: python\n\n((?:(?: +.*)?\n)+)", re.M)


def snippets(page: Path) -> list[str]:
    return [dedent(found) for found in SNIPPET.findall(page.read_text())]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_snippetsCompile(page: Path) -> None:
    for snippet in snippets(page):
        compile(snippet, str(page), "exec")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_rowsOfTablesAreWhole(page: Path) -> None:
    """
    In a simple table whatever stands in the first column begins a row.
    """
    tables = re.findall(r"^(==+)( +==+)+\n((?:.+\n)+?)(?=\1 )", page.read_text(), re.M)
    for border, _, rows in tables:
        for row in rows.splitlines():
            name, rest = row[: len(border)].strip(), row[len(border) :].strip()
            assert not name or (rest and not name.endswith(",")), row


def test_thereAreSnippets() -> None:
    assert sum(len(snippets(page)) for page in PAGES) > 10


@pytest.mark.filterwarnings("ignore::DeprecationWarning:twisted.web.resource")
def test_theTutorialCounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    program, shorter, ended, login = snippets(ROOT / "docs/tutorial/index.rst")
    names: dict[str, Any] = {}
    exec(program.split("application =")[0], names)
    clock, printed = Clock(), []
    jar = None
    bodies: list[str] = []
    names["print"] = lambda *words: printed.append(words)
    for visit in range(1, 4):
        site = names["site"] = SessionSite(
            names["root"], store="sqlite:///counter.db", reactor=clock
        )
        exec(shorter, names)
        exec(ended, names)
        browser = Browser(site, jar=jar)
        jar = browser.jar
        for path in "/", "/favicon.ico":  # for which browsers ask, too
            browser.get(path).addCallback(lambda response: bodies.append(response.text()))
        assert bodies[-2] == f"visits: {visit}" and "No Such" in bodies[-1]
        browser.close()
    exec(login, names)
    browser = Browser(names["site"], jar=jar)
    for asked in browser.get("/"), browser.post("/", {"name": "<ann>"}), browser.get("/"):
        asked.addCallback(lambda response: bodies.append(response.text()))
    assert "<p> You are nobody. Visits: 4." in bodies[-3]
    assert "<p>Welcome! You are &lt;ann&gt;. Visits: 5." in bodies[-1]
    browser.get("/").addCallback(lambda response: bodies.append(response.text()))
    assert "<p> You are &lt;ann&gt;. Visits: 6." in bodies[-1]
    browser.close()
    clock.advance(60)
    site = names["site"] = SessionSite(names["root"], store="sqlite:///counter.db", reactor=clock)
    exec(ended, names)
    clock.pump([1, 1, 1])
    assert printed == [("idle", 6)]


def test_theReadmeIsEnough(tmp_path: Path) -> None:
    snippet = snippets(ROOT / "README.rst")[0]
    snippet = snippet.replace("sqlite:///sessions.db", f"sqlite:///{tmp_path}/sessions.db")

    class Root(Resource):
        isLeaf = True

        def render_GET(self, request: object) -> bytes:
            names = {"request": request}
            exec(snippet.split("resource:\n")[1], names)
            return b"%d" % names["session"]["visits"]

    names: dict[str, object] = {"root": Root()}
    jar, seen = None, []
    for _ in range(2):
        exec(snippet.split("#")[0], names)
        site = names["site"]
        site.reactor = Clock()  # type: ignore[attr-defined]
        browser = Browser(site, jar=jar)
        jar = browser.jar
        browser.get("/").addCallback(lambda response: seen.append(response.body))
        browser.close()
    assert seen == [b"1", b"2"]


def test_theSettingsAreTheCodes() -> None:
    text = (ROOT / "docs/reference/settings.rst").read_text()
    shown = dict(re.findall(r"^``(\w+)`` +``(.+?)``  ", text, re.M))
    settings = Settings()
    for name in settings.__dataclass_fields__:
        assert shown[name] == repr(getattr(settings, name)), name
    assert shown["store"] == '"memory:"'
    for name, keyword in inspect.signature(CookiePolicy).parameters.items():
        assert shown[name] == repr(keyword.default), name
    assert shown["sessionTimeout"] == repr(Session.sessionTimeout)
    assert Session.absoluteTimeout == 30 * 86400


@pytest.mark.parametrize("home", ["", ".sockjs", ".testing"])
def test_thePublicNamesAreDocumented(home: str) -> None:
    text = (ROOT / "docs/reference/index.rst").read_text()
    pages = dict(re.findall(r"`(\w+) <\.\./api/(.+?)\.html>`_", text))
    package = import_module("twsessions" + home)
    for name in package.__all__:
        module = getattr(package, name).__module__
        assert pages[name] in (module, f"{module}.{name}")


def talk(browser: Browser, prefix: str) -> bytes:
    """
    All that a SockJS connection says when it is told C{hello}.
    """
    said: list[bytes] = []
    for to, body in (("xhr", b""), ("xhr_send", b'["hello"]'), ("xhr", b"")):
        asked = browser.post(f"{prefix}/000/one/{to}", body=body)
        asked.addCallback(lambda response: said.append(response.body))
    return b"".join(said)


def test_theSockJSPageWorks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    echo, patient, klein, protocol, bound, groups = snippets(ROOT / "docs/howto/sockjs.rst")
    names: dict[str, Any] = {}
    for snippet in (echo, patient, klein, protocol, bound, groups):
        exec(snippet, names)
    root, site = names["root"], names["site"]

    async def answer(self: object, message: str) -> str:
        return message.upper()

    class Login(Resource):
        def render_GET(self, request: Any) -> bytes:
            request.getSession().login("ann")
            return b""

    names["Patient"].answer = answer
    root.putChild(b"patient", SockJSResource(names["Patient"]))
    root.putChild(b"chat", SockJSResource(names["chat"](SessionSite(root, reactor=Clock()))))
    root.putChild(b"login", Login())
    site.reactor = Clock()
    browser = Browser(site)
    assert talk(browser, "/echo") == b'o\na["hello"]\n'
    assert talk(browser, "/patient") == b'o\na["HELLO"]\n'
    assert talk(browser, "/wire") == b'o\na["hello"]\n'
    assert talk(browser, "/chat") == b'o\na["hello"]\n'
    assert talk(browser, "/private").startswith(b"There is no session")
    browser.get("/login")
    assert talk(browser, "/private") == b'o\na["Hello, ann."]\n'
    browser.close()
    browser = Browser(Site(names["app"].resource(), reactor=Clock()))
    assert talk(browser, "/echo") == b'o\na["hello"]\n'
    browser.close()


def test_theSettingsOfSockJSAreTheCodes() -> None:
    text = (ROOT / "docs/howto/sockjs.rst").read_text()
    shown = dict(re.findall(r"^``(\w+)`` +(?:``(.+?)``|all|1.x at jsDelivr)  ", text, re.M))
    settings = SockJSSettings()
    assert shown.keys() == SockJSSettings.__dataclass_fields__.keys()
    for name, value in shown.items():
        assert value in ("", repr(getattr(settings, name))), name


def test_thePromisesOfTheReadmeAreDocumented() -> None:
    promises = (ROOT / "docs/reference/promises.rst").read_text()
    for words in ("Saved means saved", "Gone means gone"):
        assert words in promises and words in (ROOT / "README.rst").read_text()
