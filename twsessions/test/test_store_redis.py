"""
The Redis store's URLs, logins, TLS, warnings and small parts.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransportWithDisconnection
from twisted.logger import capturedLogs

import twsessions
from twsessions.core.delta import Birth, Change
from twsessions.errors import CorruptRecord, NewerFormat, StoreUnavailable
from twsessions.interfaces import ISessionStore, Verdict
from twsessions.stores._redial import Redialed
from twsessions.stores._redis.commits import _waves
from twsessions.stores._redis.record import decode, decodeEnd, read, stateBetween
from twsessions.stores._redis.route import Cluster, Sentinels, Single, _evenTags, _slotOf
from twsessions.stores._redis.subscription import Subscription
from twsessions.stores._redis.url import parse
from twsessions.stores._redis.wire import Wire, explain
from twsessions.stores.fromurl import checkURL, storeFromURL
from twsessions.test.certificates import makeCertificates
from twsessions.test.redisserver import Server, until
from twsessions.testing.contract import change, create, newKey

ensure = pytest_twisted.ensureDeferred


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server('save ""')
    made.start()
    yield made
    made.stop()


async def isServed(url: str) -> None:
    """
    See that a store works.
    """
    store: Any = storeFromURL(reactor, url)
    key = newKey()
    try:
        await store.watch(lambda keys: None)
        await store.commit([create(key, set={"da": b"1"}, principal="ann")])
        assert (await store.load([key]))[0].fields == {"da": b"1"}
        assert len(await store.sessionsOf("ann")) == 1
        await store.listen()
        await store.commit([change(key, end="logout")])
        assert len(await store.claim(1, 1.0)) == 1
        assert await store.acquire(b"x", b"y", 1.0)
        await store.sweep(1)
    finally:
        await store.close()


async def refusal(url: str) -> str:
    """
    What a store says that does not work.
    """
    store: Any = storeFromURL(reactor, url)
    try:
        with pytest.raises(StoreUnavailable) as caught:
            await store.load([newKey()])
    finally:
        await store.close()
    error: BaseException | None = caught.value
    said = ""
    while error is not None:
        said += repr(error)
        error = error.__cause__ or error.__context__
    return said


# URLs


@pytest.mark.parametrize(
    ("rest", "route", "addresses", "login"),
    [
        ("redis://h", Single, [("h", 6379)], (None, None, 0)),
        ("redis://h:1/3", Single, [("h", 1)], (None, None, 3)),
        ("redis://[::1]:1/", Single, [("::1", 1)], (None, None, 0)),
        ("redis://:p%40:s@h", Single, [("h", 6379)], (None, "p@:s", 0)),
        ("redis://me@h", Single, [("h", 6379)], ("me", None, 0)),
        ("rediss://m%2Fe:p@h/1", Single, [("h", 6379)], ("m/e", "p", 1)),
        ("redis+sentinel://a:1,b/s%20x/2", Sentinels, [("a", 1), ("b", 26379)], (None, None, 2)),
        ("redis+sentinel://u:p@a/s", Sentinels, [("a", 26379)], ("u", "p", 0)),
        ("redis+cluster://u:p@a:7,[::1]:8,c", Cluster,
         [("a", 7), ("::1", 8), ("c", 6379)], ("u", "p", 0)),
    ],
)  # fmt: skip
def test_url(rest: str, route: type, addresses: list[Any], login: Any) -> None:
    scheme, _, rest = rest.partition(":")
    target = parse(scheme, rest)
    assert target.addresses == addresses
    assert (target.login.user, target.login.password, target.login.database) == login
    assert (target.timeout, target.prefix, target.replicas) == (1.5, b"twsessions", 0)
    assert (target.tls is not None) == (scheme == "rediss")
    assert type(target.route(Clock())) is route
    assert "p@:s" not in repr(target) and "password" not in repr(target.login)
    assert ISessionStore.providedBy(storeFromURL(Clock(), f"{scheme}:{rest}"))


def test_options() -> None:
    target = parse(
        "redis+sentinel",
        "//u:p@h/s?prefix=my:app&timeout=0.5&replicas=2&tls=yes&sentinelUser=su&sentinelPassword=sp",
    )
    assert (target.prefix, target.timeout, target.replicas) == (b"my:app", 0.5, 2)
    assert (target.sentinelLogin.user, target.sentinelLogin.password) == ("su", "sp")
    assert target.tls is not None
    assert "sp" not in repr(target.sentinelLogin).split("'")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis:", "is like redis://"),
        ("redis:hunter2", "is like redis://"),
        ("redis:/hunter2", "is like redis://"),
        ("redis://", "no host"),
        ("redis://:6379", "no host"),
        ("redis://me:hunter2@", "no host"),
        ("redis://me:hunter2@:1", "no host"),
        ("redis://h:hunter2", "no port"),
        ("redis://h:0", "no port"),
        ("redis://h:65536", "no port"),
        ("redis://hunter2:x:1", "no host"),
        ("redis://[hunter2", "no host"),
        ("redis://@h", "nobody is named"),
        ("redis://:@h", "nobody is named"),
        ("redis://h/hunter2", "is a number"),
        ("redis://h/1/2", "is a number"),
        ("redis://h/-1", "is a number"),
        ("redis://h/0#hunter2", "%23"),
        ("redis://h,hunter2", "only a cluster or Sentinels"),
        ("redis://h?password=hunter2", "no option called 'password'"),
        ("redis://h?hunter2-x=1", "has no option;"),
        ("redis://h?tls=yes", "no option called 'tls'"),
        ("redis://h?ca=/hunter2", "no option called 'ca'"),
        ("redis://h?timeout=hunter2", "0.05 to 60"),
        ("redis://h?timeout=0", "0.05 to 60"),
        ("redis://h?timeout=nan", "0.05 to 60"),
        ("redis://h?timeout=1&timeout=2", "given twice"),
        ("redis://h?prefix=", "letters, digits"),
        ("redis://h?prefix=%7Bhunter2%7D", "letters, digits"),
        ("redis://h?replicas=hunter2", "0 to 9"),
        ("rediss://h?ca=/hunter2", "cannot be read"),
        ("rediss://h?ca=/dev/null", "no certificate"),
        ("redis+sentinel://h", "name Sentinel's service"),
        ("redis+sentinel://h//0", "name Sentinel's service"),
        ("redis+sentinel://h/s/hunter2", "is a number"),
        ("redis+sentinel://h/s?tls=hunter2", "yes or no"),
        ("redis+sentinel://h/s?ca=/hunter2", "TLS only"),
        ("redis+cluster://h/0", "no numbered databases"),
        ("redis+cluster://h?sentinelUser=x", "no option called 'sentinelUser'"),
    ],
)
def test_refusedURL(url: str, says: str) -> None:
    for attempt in lambda: storeFromURL(Clock(), url), lambda: checkURL(url):
        with pytest.raises(ValueError) as caught:
            attempt()
        assert says in str(caught.value)
        assert "hunter2" not in str(caught.value)
        assert caught.value.__cause__ is None


# Logins


@ensure
async def test_acl(server: Server) -> None:
    """
    A user who may do only what the store needs.
    """
    server.call(
        "ACL", "SETUSER", "app", "on", ">hunt er/2", "~app:*", "&app:*", "-@all", "+@read",
        "+@write", "+@scripting", "+@connection", "+@pubsub", "+time", "+info", "+ping",
    )  # fmt: skip
    host = f"127.0.0.1:{server.port}"
    await isServed(f"redis://app:hunt%20er%2F2@{host}?prefix=app:")
    for url in f"redis://app:hunter3@{host}", f"redis://nobody:hunter3@{host}":
        said = await refusal(url)
        assert "refused user and password" in said and "hunter3" not in said
    said = await refusal(f"redis://app:hunt%20er%2F2@{host}?prefix=other")
    assert "may not do what the store needs" in said and "hunt er" not in said
    server.call("ACL", "SETUSER", "default", "resetpass", ">sesame")
    with pytest.raises(Exception, match="NOAUTH"):
        server.call("PING")
    assert "wants a password" in await refusal(f"redis://{host}")
    await isServed(f"redis://:sesame@{host}/3?prefix=app:")


@ensure
async def test_passwordWithoutNeed(server: Server) -> None:
    """
    A password where there is none is a mistake, and is not repeated.
    """
    said = await refusal(f"redis://:hunter2@127.0.0.1:{server.port}")
    assert "refused user, password or database" in said and "hunter2" not in said
    assert "database" in await refusal(f"redis://127.0.0.1:{server.port}/99")


@ensure
async def test_clusterByMistake() -> None:
    made = Server("cluster-enabled yes", "cluster-require-full-coverage no")
    made.start()
    try:
        made.call("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        until(lambda: b"cluster_state:ok" in made.call("CLUSTER", "INFO"), "the cluster is up")
        # One node with all slots answers as one server does.
        await isServed(f"redis://127.0.0.1:{made.port}")
        await isServed(f"redis+cluster://127.0.0.1:{made.port}?prefix=other")
    finally:
        made.stop()
    assert "use redis+cluster://" in str(explain("MOVED 1 h:1"))


# TLS


@ensure
async def test_tls(tmp_path: Path) -> None:
    """
    Whoever the file names is trusted, and nobody else.
    """
    makeCertificates(tmp_path)
    made = Server(
        "port 0",
        'save ""',
        f"tls-cert-file {tmp_path}/server.pem",
        f"tls-key-file {tmp_path}/server.key",
        f"tls-ca-cert-file {tmp_path}/ca.pem",
        "tls-auth-clients no",
    )
    made.start("--tls-port", str(made.port))
    try:
        for host in "127.0.0.1", "localhost":
            await isServed(f"rediss://{host}:{made.port}/1?ca={tmp_path}/ca.pem")
        said = await refusal(f"rediss://127.0.0.1:{made.port}")
        assert "certificate verify failed" in said
        other = tmp_path / "other"
        other.mkdir()
        makeCertificates(other)
        said = await refusal(f"rediss://127.0.0.1:{made.port}?ca={other}/ca.pem")
        assert "certificate verify failed" in said
        await refusal(f"rediss://127.0.0.2:{made.port}?ca={tmp_path}/ca.pem&timeout=0.5")
        await refusal(f"redis://127.0.0.1:{made.port}?timeout=0.5")
    finally:
        made.stop()


# Warnings


@ensure
async def test_evictionIsWarnedOf(server: Server) -> None:
    for policy, count in ("noeviction", 0), ("allkeys-lru", 1), ("volatile-ttl", 1):
        server.call("CONFIG", "SET", "maxmemory-policy", policy)
        store: Any = storeFromURL(reactor, f"redis://127.0.0.1:{server.port}")
        with capturedLogs() as events:
            for _ in range(2):
                await store.load([newKey()])
                store._route.drop("a test")
            await store.watch(lambda keys: None)
        await store.close()
        assert [event["policy"] for event in events] == [policy] * count
        assert all("noeviction" in event["log_format"] for event in events)


# Any reactor

PROGRAM = """
import sys
from twisted.internet import {0}reactor as module
module.install()
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twsessions.core.delta import Birth, Change
from twsessions.stores.fromurl import storeFromURL

async def main():
    store = storeFromURL(reactor, sys.argv[1])
    key = b"k" * 32
    await store.commit([Change(key, b"t", Birth(b"s" * 16), set=dict(da=b"1"))])
    (record,) = await store.load([key])
    await store.commit([Change(key, b"u", end="logout")])
    await store.close()
    assert not reactor.getDelayedCalls()
    print(record.fields)

def start():
    Deferred.fromCoroutine(main()).addErrback(lambda f: print(f)).addBoth(lambda _: reactor.stop())

reactor.callWhenRunning(start)
reactor.run()
"""


@pytest.mark.parametrize("name", ["select", "poll", "epoll", "asyncio"])
def test_anyReactor(server: Server, name: str) -> None:
    root = Path(twsessions.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(name), f"redis://127.0.0.1:{server.port}"],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=root,
    )
    assert done.stdout == "{'da': b'1'}\n", done.stdout + done.stderr


# Small parts


def test_tagsAreSpread() -> None:
    tags = _evenTags(256)
    assert len(set(tags)) == 256
    assert [_slotOf(tag) // 64 for tag in tags] == list(range(256))
    # They are in the names of everybody's sessions: never to be changed.
    assert tags[:3] == _evenTags(256)[:3]
    assert _slotOf(b"123456789") == 0x31C3


def test_waves() -> None:
    a, b, c, d = (bytes((n,)) * 32 for n in range(4))
    changes = [
        Change(a, b""),
        Change(b, b""),
        Change(a, b"", newKey=c),
        Change(c, b""),
        Change(d, b""),
        Change(b, b"", end="logout"),
    ]
    assert _waves(changes) == [[0, 1, 4], [2, 5], [3]]
    assert _waves([]) == []


@given(st.binary(max_size=60))
def test_decodeAnything(value: bytes) -> None:
    for head in b"", b"\0", b"\1", b"\1" + b"c" * 8 + b"h" * 16:
        try:
            assert decode(b"k" * 32, head + value, 0.0) is None
        except (CorruptRecord, NewerFormat):
            pass
        with suppress(CorruptRecord):
            read(b"k" * 32, head + value, 0.0)
        stateBetween(head + value)
        try:
            decodeEnd(b"i", head + value, 0.0)
        except (CorruptRecord, NewerFormat):
            pass


@pytest.mark.parametrize(
    "text",
    [
        "ERR unknown command 'AUTH', with args beginning with: 'hunter2' ",
        "NOPERM this user has no permissions, hunter2",
        "WRONGPASS hunter2",
    ],
)
def test_explanationsRepeatNoArguments(text: str) -> None:
    assert "hunter2" not in str(explain(text))


@ensure
async def test_whatCannotBeStored(server: Server) -> None:
    """
    One such change does not hurt its neighbours.
    """
    store: Any = storeFromURL(reactor, f"redis://127.0.0.1:{server.port}")
    key, other = newKey(), newKey()
    try:
        bad = Change(key, b"t", Birth(b"s" * 16, userAgent="\ud800"))
        worse = Change(key, b"t", Birth(b"s" * 16), uses=2**70)
        outcomes = await store.commit([bad, worse, create(other)])
        assert [type(outcome).__name__ for outcome in outcomes] == [
            "StoreError", "StoreError", "Record",
        ]  # fmt: skip
        assert await store.sessionsOf("\ud800") == []
    finally:
        await store.close()


@ensure
async def test_whatIsNoString(server: Server) -> None:
    """
    Somebody else's: there is no session there, and it stays as it is.
    """
    store: Any = storeFromURL(reactor, f"redis://127.0.0.1:{server.port}")
    key, other = newKey(), newKey()
    name = b"twsessions{0}s:" + key
    server.call("RPUSH", name, "a")
    server.call("ZADD", "twsessions{0}due", "1", key)
    try:
        assert await store.load([key]) == [None]
        refused = change(key, uses=1), change(key, end="logout"), create(key)
        outcomes = await store.commit([*refused, create(other), change(other, newKey=key)])
        assert [type(outcome).__name__ for outcome in outcomes] == [
            "SessionGone", "SessionGone", "IdCollision", "Record", "IdCollision",
        ]  # fmt: skip
        assert (await store.sweep(10)).ended == 0
    finally:
        await store.close()
    assert server.call("LRANGE", name, 0, -1) == [b"a"]


@ensure
async def test_sendsAtOnce(server: Server) -> None:
    """
    What is sent while replies are awaited does not wait for them.
    """
    store: Any = storeFromURL(reactor, f"redis://127.0.0.1:{server.port}")
    try:
        await store.load([newKey()])
        assert store._route._server._wire.transport.getTcpNoDelay()
    finally:
        await store.close()


@ensure
async def test_evictedSessionsAreNotInTheWay(server: Server) -> None:
    """
    A sweep passes over what the server has thrown away, however much that is.
    """
    store: Any = storeFromURL(reactor, f"redis://127.0.0.1:{server.port}")
    key, gone = newKey(), [newKey() for _ in range(70)]
    try:
        await store.commit([create(one, idle=60.0) for one in gone])
        server.call("DEL", *[b"twsessions{0}s:" + one for one in gone])
        for one in gone:
            server.call("ZADD", "twsessions{0}due", "1", one)
        await store.commit([create(key)])
        await store.commit([change(key, idle=1e-9)])
        ended = [(await store.sweep(1)).ended for _ in range(10)]
        assert sum(ended) == 1
    finally:
        await store.close()
    assert server.call("ZCARD", "twsessions{0}due") == 0


@ensure
async def test_forgottenWish(server: Server) -> None:
    """
    After 30 days without listeners ends are not kept any more.
    """
    from twsessions.stores._redis.link import Dialer, Login
    from twsessions.stores.redis import RedisStore

    now = [0.0]
    route = Single(Dialer(reactor, 1.5, Login()), ("127.0.0.1", server.port))
    store: Any = RedisStore(route, skew=lambda: now[0])
    try:
        await store.listen()
        for day, count in (29, 1), (31, 0):
            now[0] = day * 86400.0
            key = newKey()
            await store.commit([create(key, idle=None)])
            await store.commit([change(key, end="logout")])
            assert len(await store.claim(10, 1.0)) == count
            now[0] += 1.0
            if count:
                assert 0 < server.call("TTL", "twsessions{0}ends") <= 30 * 86400
                server.call("DEL", "twsessions{0}ends")
    finally:
        await store.close()


@ensure
async def test_endsThatCannotBeRead(server: Server) -> None:
    """
    What is corrupt goes, and what a later release has written waits for one
    that can read it; of the others is heard.
    """
    import msgpack

    from twsessions.stores._redis.link import Dialer, Login
    from twsessions.stores.redis import RedisStore

    now, ends = [0.0], "twsessions{0}ends"
    route = Single(Dialer(reactor, 1.5, Login()), ("127.0.0.1", server.port))
    store: Any = RedisStore(route, skew=lambda: now[0])
    try:
        await store.listen()
        made = await store.commit([create(newKey(), idle=None) for _ in range(4)])
        await store.commit([change(record.key, end="logout") for record in made])
        good, newer, corrupt, foreign = (record.handle for record in made)
        kept = server.call("HGET", ends, newer)
        *facts, value = msgpack.unpackb(kept, raw=True)
        for handle, other in (newer, b"\x63" + value[1:]), (corrupt, value[:-1]):
            packed = msgpack.packb([*facts, other], use_bin_type=False)
            server.call("HSET", ends, handle, packed)
        server.call("HSET", ends, foreign, "text")
        with capturedLogs() as events:
            (end,) = await store.claim(10, 1.0)
            assert end.id == good
            assert await store.settle([Verdict(good, end.claim)]) == [True]
            now[0] = 60.0
            assert await store.claim(10, 1.0) == []
        assert len(events) == 1
        server.call("HSET", ends, newer, kept)
        now[0] = 4000.0
        assert [end.id for end in await store.claim(10, 1.0)] == [newer]
    finally:
        await store.close()


@pytest.mark.parametrize("patient", [False, True])
def test_nobodyIsDialledForEachCall(patient: bool) -> None:
    """
    However many ask for a server that is away, there is one try now and then;
    and one every second.
    """
    clock = Clock()
    tries: list[float] = []
    failures: list[Any] = []

    async def dial() -> Any:
        tries.append(clock.seconds())
        raise StoreUnavailable("it is away")

    server: Redialed[Any] = Redialed(clock, dial, 1.0, patient, "server")
    for _ in range(1000):
        server.up().addErrback(failures.append)
        clock.advance(0.01)
    assert len(failures) == 1000
    assert len(tries) < 20
    assert max(b - a for a, b in zip(tries, tries[1:], strict=False)) < 1.1


class Listening:
    """
    A route to a server of which nothing is heard but what the test says.
    """

    timeout = 1.5

    def __init__(self) -> None:
        self.reactor = Clock()
        self.wires: list[Any] = []

    async def connect(self) -> Wire:
        wire = Wire(self.reactor)
        transport: Any = StringTransportWithDisconnection()
        transport.protocol = wire
        transport.setTcpNoDelay = transport.setTcpKeepAlive = lambda on: None
        wire.makeConnection(transport)
        self.wires.append(wire)
        return wire


def test_aConnectionThatOnlyListensAndIsCutOff() -> None:
    """
    It is not kept when the server is not there any more, and is kept as long
    as nobody has anything to say.
    """
    route, told = Listening(), []
    confirmed = b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n"
    subscription = Subscription(route, b"c", told.append)  # type: ignore[arg-type]
    started = Deferred.fromCoroutine(subscription.start())
    (wire,) = route.wires
    wire.dataReceived(confirmed)
    assert started.called
    for _ in range(300):
        route.reactor.advance(1.0)
        if b"PING" in wire.transport.value():
            wire.transport.clear()
            wire.dataReceived(b"*2\r\n$4\r\npong\r\n$0\r\n\r\n")
    assert wire.isUp and told == []
    for _ in range(60):
        if len(route.wires) == 1:
            route.reactor.advance(1.0)
    assert not wire.isUp
    route.wires[-1].dataReceived(confirmed)
    assert told == [None]
    Deferred.fromCoroutine(subscription.close())
    assert not route.reactor.getDelayedCalls()
