"""
Nothing of a response leaves before the store knows what it tells; and what
happens when the store, or the client, goes away in between.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.web import server, static
from twisted.web.resource import Resource

from twsessions import SessionSite
from twsessions.stores.memory import MemoryStore
from twsessions.testing.browser import Browser, Pending
from twsessions.testing.faulty import FaultyStore


class Page(Resource):
    isLeaf = True
    does: Callable[[Any], Any]

    def render_GET(self, request: Any) -> Any:
        return self.does(request)


class Stage:
    def __init__(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_000_000)
        self.memory = MemoryStore(self.clock.seconds)
        self.store = FaultyStore(self.memory)
        self.page = Page()
        self.site = self.another()
        self.browser = Browser(self.site)

    def another(self) -> SessionSite:
        return SessionSite(self.page, reactor=self.clock, store=self.store)

    def ask(self, does: Callable[[Any], Any], method: str = "GET") -> Pending:
        self.page.does = does
        return self.browser.start(method, "/")

    def stored(self) -> bytes:
        """
        What the next request finds.
        """
        self.clock.advance(5)  # the breaker closes
        body: bytes = answer(self.ask(look)).body
        assert self.site.sessions == {}
        return body


def answer(pending: Pending) -> Any:
    answers: list[Any] = []

    def keep(result: Any) -> Any:
        answers.append(result)
        return result

    pending.response.addBoth(keep)
    return answers[0] if answers else None


def look(request: Any) -> bytes:
    return repr(dict(request.getSession())).encode()


def put(request: Any) -> bytes:
    request.getSession()["x"] = 1
    return b"the body"


class Stream:
    """
    A response that goes on until it is told to end.
    """

    def __call__(self, request: Any) -> int:
        self.request = request
        put(request)
        request.write(b"one")
        return server.NOT_DONE_YET


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_bytesWaitForTheCommit(stage: Stage) -> None:
    stage.store.hang()
    pending = stage.ask(put)
    assert pending.received == b"" and answer(pending) is None
    stage.store.resume()
    assert answer(pending).body == b"the body" and len(answer(pending).setCookies) == 1
    assert stage.stored() == b"{'x': 1}"


def test_head(stage: Stage) -> None:
    stage.store.hang()
    pending = stage.ask(put, "HEAD")
    assert pending.received == b""
    stage.store.resume()
    response = answer(pending)
    assert (response.code, response.body, len(response.setCookies)) == (200, b"", 1)
    assert response.headers.getRawHeaders("content-length") == ["8"]


@pytest.mark.parametrize("code", [204, 302, 304, 404])
def test_everyStatus(stage: Stage, code: int) -> None:
    def does(request: Any) -> bytes:
        request.setResponseCode(code)
        return put(request)

    stage.store.hang()
    pending = stage.ask(does)
    assert pending.received == b""
    stage.store.resume()
    assert (answer(pending).code, len(answer(pending).setCookies)) == (code, 1)
    assert stage.stored() == b"{'x': 1}"


def test_anErrorAfterTheFirstWrite(stage: Stage) -> None:
    """
    Nothing has left, so nothing is in front of the error page, whose length is told.
    """

    def does(request: Any) -> None:
        put(request)
        request.write(b"part")
        raise RuntimeError("the resource fails")

    stage.store.hang()
    pending = stage.ask(does)
    stage.store.resume()
    response = answer(pending)
    assert response.code == 500 and response.body.startswith(b"<html>")
    assert pending.received.endswith(response.body) and b"part" not in pending.received
    assert stage.stored() == b"{'x': 1}"


def test_errorPages(stage: Stage) -> None:
    def does(request: Any) -> None:
        put(request)
        raise RuntimeError("the resource fails")

    stage.store.hang()
    pending = stage.ask(does)
    assert pending.received == b""
    stage.store.resume()
    assert (answer(pending).code, len(answer(pending).setCookies)) == (500, 1)


def test_producers(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"q" * 200_000)
    file = static.File(str(tmp_path / "file"))
    file.isLeaf = True

    def does(request: Any) -> Any:
        put(request)
        return file.render(request)

    stage.store.hang()
    pending = stage.ask(does)
    assert pending.received == b""
    stage.store.resume()
    assert len(answer(pending).body) == 200_000 and len(answer(pending).setCookies) == 1


def test_streamsWaitAtBothEnds(stage: Stage) -> None:
    stream = Stream()
    stage.store.hang()
    pending = stage.ask(stream)
    stream.request.write(b"two")
    assert pending.received == b""
    stage.store.resume()
    assert b"one" in pending.received and b"two" in pending.received
    stage.store.hang()
    stream.request.getSession()["y"] = 2
    stream.request.write(b"three")
    assert b"three" in pending.received  # the headers have left: only the end waits
    stream.request.finish()
    assert not pending.received.endswith(b"0\r\n\r\n")
    stage.store.resume()
    assert answer(pending).body == b"onetwothree"
    assert stage.stored() == b"{'x': 1, 'y': 2}"


def test_aStreamThatCannotBeStoredIsCutOff(stage: Stage) -> None:
    stream = Stream()
    pending = stage.ask(stream)
    stream.request.getSession()["y"] = 2
    stage.store.down = True
    stream.request.finish()
    assert isinstance(answer(pending), Failure)
    assert not pending.received.endswith(b"0\r\n\r\n")
    pending.response.addErrback(lambda failure: None)
    stage.store.down = False
    assert stage.stored() == b"{'x': 1}"


def test_downAtTheCommit(stage: Stage) -> None:
    stage.store.down = True
    response = answer(stage.ask(put))
    assert (response.code, response.setCookies) == (500, [])
    assert b"the body" not in response.body
    assert stage.site.sessions == {}


def test_hangingAtTheCommit(stage: Stage) -> None:
    stage.store.hang()
    pending = stage.ask(put)
    stage.clock.advance(2)
    assert (answer(pending).code, answer(pending).setCookies) == (500, [])
    assert stage.site.sessions == {}


def test_whatWasNotAcknowledgedIsForgottenHere(stage: Stage) -> None:
    answer(stage.ask(put))

    def change(request: Any) -> bytes:
        session = request.getSession()
        session["x"], session["y"] = 2, 3
        return b""

    stage.store.failNext("commit")
    assert answer(stage.ask(change)).code == 500
    assert stage.stored() == b"{'x': 1}"
    stage.store.loseReplies("commit")
    assert answer(stage.ask(change)).code == 500
    assert stage.stored() == b"{'x': 2, 'y': 3}"  # the store has it: every process agrees


def test_downAtTheLoad(stage: Stage) -> None:
    answer(stage.ask(put))
    stage.store.down = True
    response = answer(stage.ask(put))
    assert (response.code, response.setCookies) == (503, [])
    assert response.headers.getRawHeaders("retry-after") == ["1"]
    response = answer(stage.ask(lambda request: b"no session"))
    assert (response.code, response.setCookies) == (200, [])
    stage.store.down = False
    assert stage.stored() == b"{'x': 1}"


def test_hangingAtTheLoad(stage: Stage) -> None:
    answer(stage.ask(put))
    stage.store.hang()
    pending = stage.ask(put)
    assert answer(pending) is None
    stage.clock.advance(2)
    assert answer(pending).code == 503
    stage.store.resume()
    assert stage.stored() == b"{'x': 1}"


def test_withoutCookieTheStoreIsNotAsked(stage: Stage) -> None:
    answer(stage.ask(lambda request: b""))
    assert stage.store.calls == []
    stage.browser.setRawCookie(b"twsession=malformed; other=1")
    answer(stage.ask(lambda request: b""))
    assert stage.store.calls == []


def test_aPageThatDoesNotUseItCommitsNothing(stage: Stage) -> None:
    answer(stage.ask(put))
    stage.store.calls.clear()
    answer(stage.ask(lambda request: b""))
    answer(stage.ask(look))
    assert [name for name, _ in stage.store.calls] == ["load", "load"]


def test_theClientGoesWhileItLoads(stage: Stage) -> None:
    answer(stage.ask(put))
    stage.store.hang()
    stage.ask(put).disconnect()
    stage.store.resume()
    assert stage.stored() == b"{'x': 1}"


def test_theClientGoesWhileItCommits(stage: Stage) -> None:
    stage.store.hang()
    stage.ask(put).disconnect()
    stage.store.resume()
    (record,) = stage.memory.iterate(None, 10).result  # type: ignore[misc]
    assert list(record.fields) == ["dx"]
    assert stage.site.sessions == {}


def test_theClientGoesInTheMiddle(stage: Stage) -> None:
    answer(stage.ask(put))
    stream = Stream()
    pending = stage.ask(stream)
    stream.request.getSession()["z"] = 1
    pending.disconnect()
    assert stage.stored() == b"{'x': 1, 'z': 1}"


def test_endedElsewhereMeanwhile(stage: Stage) -> None:
    answer(stage.ask(put))
    uid = stage.browser.cookies["twsession"].encode()
    requests = []

    def begin(request: Any) -> int:
        request.getSession()["late"] = 1
        requests.append(request)
        return server.NOT_DONE_YET

    pending, ended = stage.ask(begin), []
    session = stage.another().loadSession(uid)
    session.addCallback(lambda session: session.expire()).addCallback(ended.append)
    assert ended == [None]
    requests[0].write(b"secret")
    requests[0].finish()
    response = answer(pending)
    assert response.code == 409 and b"secret" not in response.body
    assert b"Max-Age=0" in response.setCookies[0]
    assert stage.memory.iterate(None, 10).result == []


def test_whatHasBeenPipelinedSeesTheFirst(stage: Stage) -> None:
    answer(stage.ask(put))
    cookie = b"Cookie: twsession=" + stage.browser.cookies["twsession"].encode()
    from twisted.internet.testing import StringTransport

    def does(request: Any) -> bytes:
        session = request.getSession()
        session["x"] += 1
        return b"x=%d;" % session["x"]

    stage.page.does = does
    protocol, transport = stage.site.buildProtocol(None), StringTransport()
    protocol.makeConnection(transport)
    stage.store.hang()
    protocol.dataReceived((b"GET / HTTP/1.1\r\nHost: x\r\n" + cookie + b"\r\n\r\n") * 3)
    assert transport.value() == b""
    for _ in range(20):
        stage.store.resume()
    bodies = [part.split(b";")[0] for part in transport.value().split(b"x=")[1:]]
    assert bodies == [b"2", b"3", b"4"]


def test_aStreamMayWaitForTheEndOfItsSession(stage: Stage) -> None:
    answer(stage.ask(put))

    def events(request: Any) -> int:
        def ended() -> None:
            request.write(b"it has ended")
            request.finish()

        request.getSession().notifyOnExpire(ended)
        request.write(b"wait: ")
        return server.NOT_DONE_YET

    pending = stage.ask(events)
    stage.clock.advance(899)
    assert not pending.received.endswith(b"0\r\n\r\n")
    stage.clock.pump([1, 1, 1])
    assert answer(pending).body == b"wait: it has ended"


def test_toLookIsToDependOnTheCookie() -> None:
    """
    A cache must not give one user's page to another.
    """

    class Front(Resource):
        isLeaf = True

        def render_GET(self, request: Any) -> bytes:
            return b"%r" % request.peekSession()

    browser = Browser(SessionSite(Front(), reactor=Clock()))
    seen: list[Any] = []
    browser.get("/").addCallback(seen.append)
    assert seen[0].headers.getRawHeaders("vary") == ["Cookie"]
    assert not seen[0].headers.hasHeader("set-cookie")
