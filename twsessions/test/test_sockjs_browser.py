"""
SockJS as people use it: sockjs-client in a browser, over every transport.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.web.server import Site
from twisted.web.static import File

import twsessions
from twsessions.test.chromium import Chromium, chromium, until
from twsessions.test.real import freePort, missing
from twsessions.test.redisproxy import Proxy
from twsessions.test.test_examples import running

LIBRARY = Path("/usr/share/nodejs/sockjs-client/dist/sockjs.min.js")  # Debian's

#: By sockjs-client's names. Those in a frame are of the server's own origin.
TRANSPORTS = (
    "websocket",
    "xhr-streaming",
    "eventsource",
    "iframe-eventsource",
    "htmlfile",
    "iframe-htmlfile",
    "xhr-polling",
    "iframe-xhr-polling",
    "jsonp-polling",
)
EVERYWHERE = tuple(name for name in TRANSPORTS if name != "htmlfile")  # it wants the page's origin
# Chromium does not tell a page whose frame's stream was cut.
NOTICING = tuple(name for name in EVERYWHERE if name != "iframe-htmlfile")

SERVER = """
import sys
from twisted.internet import reactor
from twisted.web.resource import Resource
from twisted.web.server import Site
from twisted.web.static import Data, File
from twsessions.sockjs import SockJSConnection, SockJSResource

port, library = int(sys.argv[1]), sys.argv[2]

class Echo(SockJSConnection):
    def onOpen(self, info):
        self.name = info.path.split("/")[3]
        print("opened", self.name, flush=True)

    def onMessage(self, message):
        if message == "close":
            self.close(3456, 'He said "\\u00fcber & out"')
        elif message == "large":
            self.send("x" * 300_000)
        else:
            self.send(message)

    def onClose(self, code, reason):
        print("closed", self.name, flush=True)

root = Resource()
root.putChild(b"", Data(sys.stdin.buffer.read(), "text/html; charset=utf-8"))
root.putChild(b"sockjs.js", File(library, defaultType="text/javascript"))
# Streams often come to their end here, and who has left without a word is noticed soon.
root.putChild(b"echo", SockJSResource(
    Echo, reactor, sockjsURL="/sockjs.js", heartbeat=1.0, responseLimit=16384
))
reactor.listenTCP(port, Site(root), interface="127.0.0.1")
reactor.callWhenRunning(print, "up", flush=True)
reactor.run()
"""

PAGE = r"""<!doctype html><meta charset="utf-8"><title>SockJS</title>
<link rel="icon" href="data:,"><script src="/sockjs.js"></script><body><script>
const sockets = {};
function connect(name, base, transport) {
  const it = sockets[name] = {sent: [], got: [], transport: null, end: null};
  it.socket = new SockJS(base, null, {transports: [transport], sessionId: () => name});
  it.socket.onopen = () => it.transport = it.socket.transport;
  it.socket.onmessage = event => it.got.push(event.data);
  it.socket.onclose = event => it.end = [event.code, event.reason, event.wasClean];
}
function send(it, messages) {
  for (const message of messages) {
    it.sent.push(message);
    it.socket.send(message);
  }
}
function units(page) {  // of UTF-16, halves of pairs among them: most alone, one pair together
  return String.fromCharCode(...Array.from({length: 0x1000}, (_, unit) => 0x1000 * page + unit));
}
</script>"""


@pytest.fixture(scope="module")
def library() -> Path:
    if not LIBRARY.exists():
        missing("node-sockjs-client")
    return LIBRARY


class Server:
    """
    A server process: it echoes, and writes down who has come and gone.
    """

    def __init__(self, directory: Path, library: Path) -> None:
        self.port = freePort()
        self.log = directory / "server.log"
        self._library = library
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-c", SERVER, str(self.port), str(self._library)]
        environment = dict(os.environ, PYTHONPATH=str(Path(twsessions.__file__).parents[1]))
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        assert self.process.stdin is not None
        with self.process.stdin as page:
            page.write(PAGE.encode())

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    async def says(self, line: str) -> None:
        """
        Wait until it has said so.
        """

        async def look() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return line in self.log.read_text().splitlines()

        await until(look)


@contextmanager
def serving(directory: Path, library: Path) -> Iterator[Server]:
    server = Server(directory, library)
    try:
        yield server
    finally:
        server.kill()


@pytest_twisted.async_yield_fixture(scope="module")
async def browser(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Chromium]:
    async with chromium(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, library: Path) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server"), library) as server:
        yield server


class Socket:
    """
    A SockJS object in the page.
    """

    _count = 0

    def __init__(self, browser: Chromium, base: str, transport: str) -> None:
        Socket._count += 1
        self.name = f"{transport}-{Socket._count}"
        self._browser, self._base, self._transport = browser, base, transport

    async def run(self, script: str, *arguments: object) -> Any:
        """
        Run a script that knows the object as C{it.socket}.
        """
        script = "const [name, ...given] = arguments, it = sockets[name]; " + script
        return await self._browser.run(script, self.name, *arguments)

    async def open(self) -> None:
        await self._browser.run("connect(...arguments)", self.name, self._base, self._transport)
        got = await until(lambda: self.run("return it.transport || it.end"))
        assert got == self._transport

    async def echo(self, messages: str, *arguments: object) -> None:
        """
        Send messages, and wait until all have come back.

        @param messages: a JavaScript expression, an array.
        """
        await self.run(f"send(it, {messages})", *arguments)
        await until(lambda: self.run("return it.end || it.got.length >= it.sent.length"))
        differ = "it.got.findIndex((message, at) => message !== it.sent[at])"
        assert await self.run(f"return [it.end, it.got.length - it.sent.length, {differ}]") == [
            None,
            0,
            -1,
        ]

    async def end(self) -> Any:
        """
        Its end, when it comes: code, reason and whether it was clean.
        """
        return await until(lambda: self.run("return it.end"))


MESSAGES = [
    "",
    "%20",
    "100%\r\n%0A \0%00 + & = ? # \\ / \"'\ufeff",
    "</script><script>alert(1)</script>",
    "data: x\n\ndata: y\r\n\r\n",
    "Gr\u00fc\u00dfe, \u65e5\u672c\u8a9e, \U0001f600",
    "null",
    '["a"]',
]

WHERE = [("127.0.0.1", name) for name in TRANSPORTS] + [("localhost", name) for name in EVERYWHERE]


@pytest.mark.parametrize("host, transport", WHERE)
@pytest_twisted.ensureDeferred
async def test_messagesAndAClose(
    browser: Chromium, server: Server, host: str, transport: str
) -> None:
    """
    A page of the same origin, and one of another.
    """
    await server.says("up")
    await browser.visit(f"http://{host}:{server.port}/")
    await browser.errors()  # of pages before this one
    base = f"http://127.0.0.1:{server.port}/echo"
    one = Socket(browser, base, transport)
    await one.open()
    await server.says(f"opened {one.name}")
    await one.echo("given", *MESSAGES)
    for page in range(16):
        await one.echo("[units(given[0])]", page)
    await one.echo("['x'.repeat(60_000), 'y'.repeat(60_000)]")
    await one.echo("Array.from({length: 200}, (_, number) => 'number ' + number)")
    await one.run("it.socket.send('large')")
    large = "return it.got[it.sent.length]?.length"
    assert await until(lambda: one.run(large)) == 300_000

    await one.run("it.socket.send('close')")
    assert await one.end() == [3456, 'He said "\u00fcber & out"', True]
    await server.says(f"closed {one.name}")
    assert await browser.errors() == []


async def opened(browser: Chromium, port: int, transports: tuple[str, ...]) -> list[Socket]:
    """
    Sockets, each to a host of its own: a browser has few connections to one.
    """
    sockets = [Socket(browser, f"http://{name}.localhost:{port}/echo", name) for name in transports]
    for socket in sockets:
        await socket.open()
        await socket.echo("['hello']")
    return sockets


@pytest_twisted.ensureDeferred
async def test_theClientCloses(browser: Chromium, server: Server) -> None:
    await server.says("up")
    await browser.visit(f"http://127.0.0.1:{server.port}/")
    sockets = await opened(browser, server.port, EVERYWHERE)
    for socket in sockets:
        await socket.run("it.socket.close(3001, 'Enough')")
        assert await socket.end() == [3001, "Enough", True]
    for socket in sockets:
        await server.says(f"closed {socket.name}")


@pytest_twisted.ensureDeferred
async def test_theServerDies(browser: Chromium, tmp_path: Path, library: Path) -> None:
    with serving(tmp_path, library) as server:
        await server.says("up")
        await browser.visit(f"http://127.0.0.1:{server.port}/")
        before = await opened(browser, server.port, NOTICING)
        server.kill()
        server.start()
        await server.says("up")
        for socket in before:
            code, _, wasClean = await socket.end()
            assert (code, wasClean) == (1006, False), socket.name
        await opened(browser, server.port, NOTICING)


@pytest_twisted.ensureDeferred
async def test_theNetworkIsCut(browser: Chromium, server: Server) -> None:
    await server.says("up")
    await browser.visit(f"http://127.0.0.1:{server.port}/")
    proxy = Proxy(server.port)
    await proxy.start()
    try:
        before = await opened(browser, proxy.port, NOTICING)
        await proxy.stop()
        for socket in before:
            await server.says(f"closed {socket.name}")
        await proxy.start()
        for socket in before:
            code, _, _ = await socket.end()
            assert code in (1002, 1006), socket.name  # whether it hears from the server again
        await opened(browser, proxy.port, NOTICING)
    finally:
        await proxy.stop()


class Person:
    """
    Somebody in the chat, with a browser of their own.
    """

    def __init__(self, browser: Chromium, name: str, port: int) -> None:
        self.browser, self.name, self.url = browser, name, f"http://127.0.0.1:{port}/"

    async def come(self) -> None:
        await self.browser.visit(self.url)
        await self.browser.type("[name=name]", self.name)
        await self.browser.click("#login button")
        await self.sees(self.name, "#who")

    async def say(self, text: str) -> None:
        await self.browser.type("#text", text)
        await self.browser.click("#say button")

    async def sees(self, text: str, css: str) -> None:
        """
        Wait until C{text} is in an element.
        """

        async def look() -> bool:
            return text in await self.browser.text(css)

        await until(look)

    async def seesTheEnd(self) -> None:
        """
        Wait until the page says that the session has ended.
        """
        await self.sees("Your session has ended", "#ended:not([hidden])")

    async def seesPeople(self, *names: str, meanwhile: str = "") -> None:
        """
        Wait until those and no others are in the room.

        @param meanwhile: say that now and then, or nothing.
        """

        async def look() -> bool:
            if meanwhile:
                await self.say(meanwhile)
            return (await self.browser.text("#who")).split() == sorted(names)

        await until(look)


@pytest.fixture
def port() -> int:
    return freePort()


@pytest_twisted.async_yield_fixture
async def people(
    browser: Chromium, tmp_path: Path, port: int
) -> AsyncIterator[tuple[Person, Person]]:
    (tmp_path / "another").mkdir()
    async with chromium(tmp_path / "another") as another:
        yield Person(browser, "ann", port), Person(another, "bob", port)


@pytest_twisted.async_yield_fixture
async def libraryURL(library: Path) -> AsyncIterator[str]:
    """
    Where the library is: on a server in this process.
    """
    listening: Any = reactor.listenTCP(  # type: ignore[attr-defined]
        0, Site(File(str(library.parent))), interface="127.0.0.1"
    )
    yield f"http://127.0.0.1:{listening.getHost().port}/{library.name}"
    await listening.stopListening()


@pytest_twisted.ensureDeferred
async def test_whoLogsOutLeavesTheRoom(
    people: tuple[Person, Person], tmp_path: Path, port: int, libraryURL: str
) -> None:
    ann, bob = people
    with running("sockjs_chat", tmp_path, port, SOCKJS_URL=libraryURL):
        await ann.come()
        await ann.seesPeople("ann")
        await bob.come()
        for one in people:
            await one.seesPeople("ann", "bob")
        await ann.say("<b>Hello</b> 100%")
        for one in people:
            await one.sees("ann: <b>Hello</b> 100%", "#said")
        await bob.browser.click("#logout")
        await ann.seesPeople("ann")
        await bob.seesTheEnd()
        assert await bob.browser.text("#who") == ""
        await bob.come()
        for one in people:
            await one.seesPeople("ann", "bob")
    # It was killed. The pages come back by themselves, and are still logged in.
    for one in people:
        await one.seesPeople()
        await one.browser.errors()  # of connections, which were cut
    with running("sockjs_chat", tmp_path, port, SOCKJS_URL=libraryURL):
        for one in people:
            await one.seesPeople("ann", "bob")


@pytest_twisted.ensureDeferred
async def test_whoIsSilentLeavesTheRoom(
    people: tuple[Person, Person], tmp_path: Path, port: int, libraryURL: str
) -> None:
    ann, bob = people

    async def bobComes() -> None:
        talking = ann.seesPeople("ann", "bob", meanwhile="Is anybody there?")
        await gatherResults([Deferred.fromCoroutine(one) for one in (bob.come(), talking)])

    with running("sockjs_chat", tmp_path, port, SOCKJS_URL=libraryURL, SESSION_TIMEOUT="6"):
        await ann.come()
        await ann.browser.errors()  # of the page before this one
        await bobComes()
        await ann.seesPeople("ann", meanwhile="Bob?")
        await bob.seesTheEnd()
        assert await ann.browser.errors() == []
        await bobComes()


@pytest_twisted.ensureDeferred
async def test_aLogoutInAnotherProcessIsSeen(
    browser: Chromium, tmp_path: Path, port: int, libraryURL: str
) -> None:
    ann, there = Person(browser, "ann", port), freePort()
    with (
        running("sockjs_chat", tmp_path, port, SOCKJS_URL=libraryURL),
        running("sockjs_chat", tmp_path, there, SOCKJS_URL=libraryURL),
    ):
        await ann.come()
        await ann.seesPeople("ann")
        here = await browser.window()
        await browser.openWindow()
        await browser.visit(f"http://127.0.0.1:{there}/")  # ports share cookies
        await ann.seesPeople("ann")
        await browser.click("#logout")
        await ann.seesTheEnd()
        await browser.lookAt(here)
        await ann.seesTheEnd()
        assert await browser.text("#who") == ""
