"""
The PostgreSQL store's own: its URLs, tables, roles, TLS, and what is not in
the contract.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.task import Clock, deferLater
from twisted.logger import capturedLogs

import twsessions
from twsessions.core.record import Record
from twsessions.errors import SessionGone, StoreError, StoreUnavailable
from twsessions.interfaces import Message
from twsessions.stores.fromurl import checkURL, storeFromURL
from twsessions.test.postgresserver import Server
from twsessions.test.real import missing
from twsessions.testing.contract import change, create, newKey

try:
    import psycopg

    from twsessions.stores._postgres.link import Link
    from twsessions.stores._postgres.record import decode, encode
    from twsessions.stores._postgres.url import parse
    from twsessions.stores.postgresql import PostgreSQLStore
except ModuleNotFoundError:
    psycopg = None


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    if psycopg is None:
        missing("psycopg")
    made = Server()
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest_twisted.async_yield_fixture
async def stores(server: Server) -> Any:
    server.clear()
    made: list[Any] = []

    def make(url: str | None = None, **more: Any) -> Any:
        where = server.url() if url is None else url
        made.append(PostgreSQLStore(reactor, parse(where.partition(":")[2]), **more))
        return made[-1]

    yield make
    for store in made:
        await store.close()


async def one(store: Any, change_: Any) -> Any:
    (outcome,) = await store.commit([change_])
    assert isinstance(outcome, Record), outcome
    return outcome


async def refused(deferred: Any) -> str:
    with pytest.raises(StoreUnavailable) as caught:
        await deferred
    return str(caught.value)


# URLs


@pytest.mark.parametrize(
    ("url", "parameters"),
    [
        ("//", {}),
        ("//h", {"host": "h", "port": ""}),
        ("//u@h:1/d", {"host": "h", "port": "1", "user": "u", "dbname": "d"}),
        (
            "//u%40x:p%3A%2F%3F%23@[::1]:5433/d%2Fe",
            {
                "host": "::1", "port": "5433", "user": "u@x", "password": "p:/?#",
                "dbname": "d/e",
            },
        ),
        (
            "//a:1,b/d",
            {"host": "a,b", "port": "1,", "dbname": "d", "target_session_attrs": "read-write"},
        ),
        ("///d?host=%2Frun%2Fpg", {"host": "/run/pg", "dbname": "d"}),
        ("//%2Frun%2Fpg:7/d", {"host": "/run/pg", "port": "7", "dbname": "d"}),
        ("//h?sslmode=require", {"host": "h", "port": "", "sslmode": "require"}),
        (
            "//h?sslrootcert=/ca.pem",
            {"host": "h", "port": "", "sslrootcert": "/ca.pem", "sslmode": "verify-full"},
        ),
    ],
)  # fmt: skip
def test_urls(server: Server, url: str, parameters: dict[str, str]) -> None:
    target = parse(url)
    assert target.parameters == parameters
    assert (target.schema, target.timeout) == ("twsessions", 1.5)
    checkURL("postgresql:" + url)


def test_options(server: Server) -> None:
    target = parse("//h/d?schema=app_1&timeout=0.25&application_name=me")
    assert (target.schema, target.timeout) == ("app_1", 0.25)
    assert target.parameters["application_name"] == "me"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "is like postgresql://"),
        ("secret", "is like postgresql://"),
        ("/secret", "is like postgresql://"),
        ("//u:secret#x@h", "%23"),
        ("//u:secret?x@h", "%3F"),
        ("//u:secret/x@h/d", "no host, or no port"),
        ("//u:se:cret@h:port", "no host, or no port"),
        ("//u:secret@h:99999", "no host, or no port"),
        ("//u:secret@h/a/b", "%2F"),
        ("//u:secret@h?host=secret", "given twice"),
        ("//u:secret@h?sslmode=secret", "one of disable, allow"),
        ("//u:secret@h?colour=secret", "no option called 'colour'"),
        ("//u:secret@h?se%20cret=1", "has no option; it has"),
        ("//u:secret@h?timeout=1&timeout=2", "given twice"),
        ("//u:secret@h?timeout=secret", "number of seconds"),
        ("//u:secret@h?timeout=0", "number of seconds"),
        ("//u:secret@h?timeout=inf", "number of seconds"),
        ("//u:secret@h?schema=Se-cret", "small letters"),
        ("//u:secret@h?schema=pg_secret", "small letters"),
        ("//u:sec%00ret@h", "NUL"),
    ],
)
def test_wrongURLs(server: Server, url: str, says: str) -> None:
    with pytest.raises(ValueError) as caught:
        checkURL("postgresql:" + url)
    assert says in str(caught.value)
    assert "secret" not in str(caught.value).lower()


@pytest_twisted.ensureDeferred
async def test_fromURL(server: Server) -> None:
    store: Any = storeFromURL(reactor, server.url("?schema=fromurl&application_name=named"))
    assert await store.load([newKey()]) == [None]
    names = {row[0] for row in server.query("SELECT application_name FROM pg_stat_activity")}
    assert "named" in names
    await store.close()


@pytest_twisted.ensureDeferred
async def test_aReactorThatCannot(server: Server) -> None:
    store = PostgreSQLStore(Clock(), parse(server.url()[11:]))
    assert "file descriptors" in await refused(store.load([newKey()]))
    await store.close()


# Tables


CHILD = """
import os, sys
from twisted.internet import task
from twsessions.stores.fromurl import storeFromURL
from twsessions.testing.contract import create, newKey

async def main(reactor):
    store = storeFromURL(reactor, sys.argv[1])
    print("ready", flush=True)
    sys.stdin.readline()
    key = newKey()
    (record,) = await store.commit([create(key)])
    (loaded,) = await store.load([key])
    print(record.version, loaded.key == key, flush=True)
    await store.close()

task.react(main)
"""


def spawn(url: str, install: str = "") -> subprocess.Popen[str]:
    root = Path(twsessions.__file__).parents[1]
    return subprocess.Popen(
        [sys.executable, "-c", install + CHILD, url],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip


def test_eightProcessesMakeTheTables(server: Server) -> None:
    children = [spawn(server.url("?schema=eight&timeout=10")) for _ in range(8)]
    for child in children:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    assert [child.communicate(timeout=60)[0] for child in children] == ["1 True\n"] * 8
    assert server.query("SELECT count(*) FROM eight.session") == [(8,)]
    assert server.query("SELECT value FROM eight.meta WHERE name = 'schema'") == [(1.0,)]


@pytest.mark.parametrize("name", ["select", "poll", "epoll", "asyncio"])
def test_reactors(server: Server, name: str) -> None:
    child = spawn(
        server.url("?timeout=10"), f"from twisted.internet import {name}reactor as r; r.install()\n"
    )
    assert child.communicate("go\n", timeout=60)[0] == "ready\n1 True\n"


@pytest_twisted.ensureDeferred
async def test_twoApplicationsOnOneServer(server: Server, stores: Any) -> None:
    a, b = stores(server.url("?schema=app_a")), stores(server.url("?schema=app_b"))
    key = newKey()
    heard: list[Any] = []
    await b.watch(heard.append)
    await one(a, create(key, principal="ann"))
    assert await b.load([key]) == [None]
    assert await b.sessionsOf("ann") == []
    await one(b, create(key))
    await one(a, change(key, end="logout"))
    assert (await b.load([key]))[0] is not None
    await a.acquire(b"x", b"a", 30.0)
    assert await b.acquire(b"x", b"b", 30.0)
    assert heard == []


@pytest_twisted.ensureDeferred
async def test_aNewerRelease(server: Server, stores: Any) -> None:
    url = server.url("?schema=newer")
    await one(stores(url), create(newKey()))
    server.query("UPDATE newer.meta SET value = 2 WHERE name = 'schema'; DROP FUNCTION newer.claim")
    before = server.query("SELECT * FROM newer.session")
    said = await refused(stores(url).load([newKey()]))
    assert "newer release" in said and "another schema" in said
    assert server.query("SELECT * FROM newer.session") == before


@pytest_twisted.ensureDeferred
async def test_aRoleThatMayNot(server: Server, stores: Any) -> None:
    """
    It can be told what is missing, and given the least that is needed.
    """
    server.query("CREATE ROLE visitor LOGIN PASSWORD 'pw'")
    url = server.url("?schema=granted").replace("root:p%40ss%3Aw%2Frd%3F%23", "visitor:pw")
    said = await refused(stores(url).load([newKey()]))
    assert "lacks a permission" in said and "GRANT" in said
    await one(stores(server.url("?schema=granted")), create(newKey()))
    said = await refused(stores(url).load([newKey()]))
    assert "lacks a permission" in said
    server.query(
        "GRANT USAGE ON SCHEMA granted TO visitor;"
        "GRANT SELECT ON ALL TABLES IN SCHEMA granted TO visitor"
    )
    reading = stores(url)
    assert await reading.load([newKey()]) == [None]
    said = await refused(reading.commit([create(newKey())]))
    assert "lacks a permission" in said and "session" in said
    server.query("GRANT INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA granted TO visitor")
    granted, key = stores(url), newKey()
    await one(granted, create(key))
    await granted.listen()
    await one(granted, change(key, end="logout"))
    assert len(await granted.claim(1, 1.0)) == 1
    assert await granted.acquire(b"x", b"a", 1.0)


@pytest_twisted.ensureDeferred
async def test_aServerThatOnlyReads(server: Server, stores: Any) -> None:
    key = newKey()
    await one(stores(), create(key))
    server.query("CREATE ROLE reader LOGIN SUPERUSER PASSWORD 'pw'")
    server.query("ALTER ROLE reader SET default_transaction_read_only TO on")
    url = server.url().replace("root:p%40ss%3Aw%2Frd%3F%23", "reader:pw")
    store = stores(url)
    assert (await store.load([key]))[0] is not None
    said = await refused(store.commit([change(key)]))
    assert "read-only" in said and "primary" in said


# TLS


def certify(directory: Path) -> None:
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (directory / "cert.pem").write_bytes(certificate.public_bytes(pem))
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (directory / "key.pem").write_bytes(private)
    (directory / "key.pem").chmod(0o600)
    owner = directory.stat().st_uid
    for path in directory.glob("*.pem"):
        os.chown(path, owner, -1)


@pytest_twisted.ensureDeferred
async def test_tls(server: Server, stores: Any, tmp_path: Path) -> None:
    directory = Path(server.directory)
    certify(directory)
    assert "SSL" in await refused(stores(server.url("?sslmode=require")).load([newKey()]))
    for setting in (
        f"ssl_cert_file = '{directory}/cert.pem'", f"ssl_key_file = '{directory}/key.pem'",
        "ssl = on",
    ):  # fmt: skip
        server.query(f"ALTER SYSTEM SET {setting}")
    server.query("SELECT pg_reload_conf()")
    for _ in range(100):
        if server.query("SHOW ssl") == [("on",)]:
            break
        await deferLater(reactor, 0.05, lambda: None)
    key = newKey()
    await one(stores(server.url(f"?sslrootcert={directory}/cert.pem&channel_binding=require")),
              create(key, set={"da": os.urandom(200_000)}))  # fmt: skip
    (record,) = await stores(server.url("?sslmode=require")).load([key])
    assert len(record.fields["da"]) == 200_000
    used = server.query("SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)"
                        " WHERE application_name = 'twsessions'")  # fmt: skip
    assert used == [(True,)]
    certify(tmp_path)  # another authority
    said = await refused(stores(server.url(f"?sslrootcert={tmp_path}/cert.pem")).load([key]))
    assert "certificate" in said
    url = server.url(f"?sslrootcert={directory}/cert.pem").replace("127.0.0.1", "localhost")
    assert "certificate" in await refused(stores(url).load([key]))  # another name


# Operations


@pytest_twisted.ensureDeferred
async def test_oneTransactionForABatch(server: Server, stores: Any) -> None:
    store = stores()
    keys = [newKey() for _ in range(200)]
    await store.load([])
    count = "SELECT pg_current_xact_id()::text::int8"
    ((before,),) = server.query(count)
    await store.commit([create(key) for key in keys])
    await store.commit([change(key, set={"da": b"1"}, usedAgo=0.0) for key in keys])
    ((after,),) = server.query(count)
    assert after - before == 3  # these two, and the one that asks
    assert len([record for record in await store.load(keys) if record]) == 200


@pytest_twisted.ensureDeferred
async def test_aBatchIsItsChangesInTurn(server: Server, stores: Any) -> None:
    """
    Whatever comes together, and whichever way through the server it takes.
    """
    chance = Random(7)
    whole, single = stores(), stores(server.url("?schema=single"))
    keys = [newKey() for _ in range(90)]
    names = [f"d{n}" for n in range(5)]
    made = [
        create(key, idle=chance.choice([None, 9.0]), set={n: b"0" for n in chance.sample(names, 3)})
        for key in keys[:80]
    ]

    def some() -> Any:
        key = chance.choice(keys)
        what: dict[str, Any] = {"usedAgo": chance.choice([None, 0.0]), "uses": chance.randrange(3)}
        picked = chance.sample(names, chance.choice([0, 1, 1, 2, 4]))
        what["set"] = {name: b"%d" % chance.randrange(9) for name in picked}
        other = chance.randrange(12)
        if other == 0:
            what["remove"] = frozenset(names) - what["set"].keys()
        elif other == 1:
            what["expect"] = {"d0": chance.choice([None, b"0"])}
        elif other == 2:
            what.update(principal=chance.choice([None, "ann"]), login=True, ownIdle=True)
        elif other == 3:
            what["idle"] = chance.choice([None, 5.0])
        elif other == 4:
            what["end"] = "logout"
        elif other == 5:
            what["newKey"] = keys[-1] if chance.random() < 0.2 else newKey()
        return change(key, **what)

    def shown(outcome: Any) -> Any:
        if isinstance(outcome, Exception):
            return type(outcome)
        return {
            name: getattr(outcome, name)
            for name in Record.__slots__
            if name not in ("created", "touched", "now", "asOf")
        } | {"used": outcome.touched > outcome.created}

    for batch in [made, *([some() for _ in range(size)] for size in (90, 60, 20, 60))]:
        batch += chance.sample(batch, 3)  # those that are said twice are done once
        if chance.random() < 0.5:
            batch = [one for one in batch if one.newKey is None]
        together = await whole.commit(batch)
        inTurn = [(await single.commit([one]))[0] for one in batch]
        assert list(map(shown, together)) == list(map(shown, inTurn))
    rows = "SELECT key, version, names, vals, idle, principal FROM {}.session ORDER BY key"
    assert server.query(rows.format("twsessions")) == server.query(rows.format("single"))
    assert server.query("SELECT count(*) FROM twsessions.quarantine") == [(0,)]


@pytest_twisted.ensureDeferred
async def test_oneThatIsRefusedAmongMany(server: Server, stores: Any) -> None:
    """
    The others are done, wherever it is.
    """
    store = stores()
    keys = sorted(newKey() for _ in range(60))
    await store.commit([create(key) for key in keys])
    server.query(
        "ALTER TABLE twsessions.session ADD CONSTRAINT c CHECK (NOT '\\x62'::bytea = ANY (vals))"
    )
    try:
        for bad in (3, 57):
            outcomes = await store.commit(
                [change(key, set={"da": b"b" if key == keys[bad] else b"1"}) for key in keys]
            )
            assert [at for at, one in enumerate(outcomes) if isinstance(one, StoreError)] == [bad]
    finally:
        server.query("ALTER TABLE twsessions.session DROP CONSTRAINT c")
    versions = sorted(record.version for record in await store.load(keys))
    assert versions == [2, 2] + [3] * 58


@pytest_twisted.ensureDeferred
async def test_whatOnlyReadsWritesNothing(server: Server, stores: Any) -> None:
    store = stores()
    await store.listen()
    await one(store, create(newKey(), principal="ann"))
    assert await store.acquire(b"x", b"a", 30.0)
    count = "SELECT pg_current_xact_id()::text::int8"
    ((before,),) = server.query(count)
    await store.load([newKey()])
    await store.sweep(100)
    await store.claim(100, 1.0)
    await store.settle([])
    await store.sessionsOf("ann")
    await store.iterate(None, 10)
    assert not await store.acquire(b"x", b"b", 30.0)
    assert server.query(count) == [(before + 1,)]


@pytest_twisted.ensureDeferred
async def test_aUseChangesNothingThatIsIndexed(server: Server, stores: Any) -> None:
    store, key = stores(), newKey()
    await one(store, create(key, principal="ann", idle=900.0))
    indexed = "SELECT key, due, principal, handle FROM twsessions.session"
    before = server.query(indexed)
    await one(store, change(key, usedAgo=0.0, uses=1, set={"da": b"1"}))
    assert server.query(indexed) == before
    await one(store, change(key, idle=5.0))
    assert server.query(indexed) != before


@pytest_twisted.ensureDeferred
async def test_corruptIsPutAsideAndLoggedOnce(server: Server, stores: Any) -> None:
    store, key = stores(), newKey()
    for times in 1, 2:  # each time that it is
        await one(store, create(key, set={"da": b"1"}))
        server.query("UPDATE twsessions.session SET uses = 99")
        with capturedLogs() as logs:
            assert await store.load([key, key]) == [None, None]
            for _ in range(100):
                if len(server.query("SELECT key FROM twsessions.quarantine")) == times:
                    break
                await deferLater(reactor, 0.01, lambda: None)
            assert await store.load([key]) == [None]
            await store.sweep(1)  # behind it
        told = [event for event in logs if "corrupt" in event["log_format"]]
        assert len(told) == 1 and key.hex() not in repr(told)
        assert server.query("SELECT key FROM twsessions.quarantine") == [(key,)] * times
        assert server.query("SELECT count(*) FROM twsessions.session") == [(0,)]


@pytest_twisted.ensureDeferred
async def test_aRowUnderAnotherKey(server: Server, stores: Any) -> None:
    store, key, other = stores(), newKey(), newKey()
    await one(store, create(key))
    server.query("UPDATE twsessions.session SET key = %s", other)
    assert await store.load([key, other]) == [None, None]
    (outcome,) = await store.commit([change(other)])
    assert isinstance(outcome, SessionGone)


@pytest_twisted.ensureDeferred
async def test_corruptEnds(server: Server, stores: Any) -> None:
    store, keys = stores(), [newKey(), newKey(), newKey()]
    await store.listen()
    for key in keys:
        await one(store, create(key))
        await one(store, change(key, end="logout"))
    ids = [row[0] for row in server.query("SELECT id FROM twsessions.ending ORDER BY ended")]
    server.query("UPDATE twsessions.ending SET seal = '\\x00' WHERE id = %s", ids[0])
    server.query("UPDATE twsessions.ending SET format = 7 WHERE id = %s", ids[1])
    assert [end.record.key for end in await store.claim(10, 30.0)] == [keys[2]]
    assert server.query("SELECT key FROM twsessions.quarantine") == [(ids[0],)]
    assert server.query("SELECT format FROM twsessions.ending ORDER BY ended") == [(7,), (1,)]


@pytest_twisted.ensureDeferred
async def test_aWishThatLapses(server: Server, stores: Any) -> None:
    clock = Clock()
    store = stores(skew=clock.seconds)
    await store.listen()
    key = newKey()
    await one(store, create(key))
    await one(store, change(key, end="logout"))
    clock.advance(31 * 86400.0)
    await store.sweep(10)
    assert server.query("SELECT count(*) FROM twsessions.ending") == [(0,)]
    key = newKey()
    await one(store, create(key))
    await one(store, change(key, end="logout"))
    assert await store.claim(10, 30.0) == []


@pytest_twisted.ensureDeferred
async def test_largeSessions(server: Server, stores: Any) -> None:
    store, key = stores(), newKey()
    fields = {f"d{number}": os.urandom(number * 17) for number in range(400)}
    await one(store, create(key, set=fields))
    await one(store, change(key, remove=frozenset(f"d{n}" for n in range(0, 400, 2))))
    (record,) = await store.load([key])
    assert record.fields == {f"d{n}": fields[f"d{n}"] for n in range(1, 400, 2)}


@pytest_twisted.ensureDeferred
async def test_moreThanASocketTakesAtOnce(server: Server, stores: Any) -> None:
    store, keys = stores(server.url("?timeout=60")), [newKey() for _ in range(16)]
    fields = {"da": os.urandom(1 << 20)}
    await store.commit([create(key, set=fields) for key in keys])
    found = await store.load(keys)
    assert [record and record.fields == fields for record in found] == [True] * 16


@pytest_twisted.ensureDeferred
async def test_closeWaitsForWhatIsUnderway(server: Server, stores: Any) -> None:
    store, key = stores(), newKey()
    committed, loaded = store.commit([create(key)]), store.load([key] * 100)
    await store.close()
    assert committed.called and loaded.called
    assert isinstance((await committed)[0], Record)
    await loaded
    assert (await stores().load([key]))[0] is not None


@pytest_twisted.ensureDeferred
async def test_nothingIsTakenWhileItCloses(server: Server, stores: Any) -> None:
    store, key = stores(), newKey()
    loaded = store.load([key])
    closed = store.close()
    for late in (store.commit([create(key)]), store.publish([Message("x", b"")])):
        with pytest.raises(StoreUnavailable, match="closed"):
            await late
    await loaded
    await closed
    assert (await stores().load([key])) == [None]


def test_itShowsNoSecrets(server: Server) -> None:
    target = parse("//u:secret@h/d")
    store = PostgreSQLStore(reactor, target)
    key = create(newKey(), set={"da": b"secret"})
    for thing in (target, store, store._reader, store._writer, store._reader._dialer, key):
        assert "secret" not in repr(thing)


def test_recordsThatDoNotParse(server: Server) -> None:
    from twsessions.errors import CorruptRecord

    noise = os.urandom(600)
    for size in range(0, 600, 7):
        with pytest.raises(CorruptRecord):
            decode(noise[:size], 0.0)
    assert encode(create(newKey()))


# A server that is away


class Away:
    """
    Dials it.
    """

    timeout = 1.0

    def __init__(self) -> None:
        self.reactor = Clock()
        self.tries: list[float] = []

    async def dial(self, *args: Any) -> Any:
        self.tries.append(self.reactor.seconds())
        raise StoreUnavailable("it is away")


def test_nobodyIsDialledForEachCall(server: Server) -> None:
    """
    However many ask, there is one try now and then; and one every second.
    """
    away = Away()
    link = Link(away, 1, lambda notice: None)  # type: ignore[arg-type]
    failures: list[Any] = []
    for _ in range(1000):
        link.ask(b"load").addErrback(failures.append)
        away.reactor.advance(0.01)
    assert len(failures) == 1000
    assert len(away.tries) < 20
    assert max(b - a for a, b in zip(away.tries, away.tries[1:], strict=False)) < 1.1
