"""
The command line: what it prints, and what it never does.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock

from twsessions import storeFromURL
from twsessions.core.delta import Birth
from twsessions.core.record import Record
from twsessions.ops.cli import _HEAD, _parser, run
from twsessions.test.page import result
from twsessions.test.real import freePort
from twsessions.test.test_examples import Visitor, running
from twsessions.testing.contract import change, newKey

ROOT = Path(__file__).parents[2]
NOON = 1785585600.0  # 2026-08-01T12:00:00Z
HOSTILE = "\x1b]0;pwned\x07\u202e\x9b31m\r\n\u2028\x7f"
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"


class World:
    """
    A store in a file of the current directory, at noon.
    """

    url = "sqlite:///s.db"

    def __init__(self) -> None:
        self.clock = Clock()
        self.clock.advance(NOON)
        self.store: Any = storeFromURL(self.clock, self.url)

    def make(self, count: int = 1, ago: float = 0.0, **what: Any) -> list[Record]:
        birth = {name: what.pop(name) for name in ("address", "userAgent") if name in what}
        what = {"idle": 900.0, "usedAgo": 0.0, **what}
        made = [
            change(newKey(), birth=Birth(os.urandom(16), ago=ago, **birth), **what)
            for _ in range(count)
        ]
        return list(result(self.store.commit(made)))

    def do(self, *arguments: str) -> tuple[int, str, str]:
        out, err = StringIO(), StringIO()
        code = result(run(self.clock, arguments, out, err))
        return code, out.getvalue(), err.getvalue()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.chdir(tmp_path)
    world = World()
    yield world
    result(world.store.close())


def test_theTable(world: World) -> None:
    [record] = world.make(
        ago=3600.0, usedAgo=30.0, uses=7, principal="ann", address="::1", userAgent=FIREFOX
    )
    world.make(idle=None)
    code, out, err = world.do("list", world.url)
    assert (code, err) == (0, "2 sessions\n")
    head, *rows = out.splitlines()
    assert re.split("  +", head) == [
        "HANDLE", "PRINCIPAL", "CREATED", "LAST USED", "ENDS AT", "REQUESTS", "ADDRESS",
        "USER AGENT",
    ]  # fmt: skip
    assert sorted(re.split("  +", row)[1:] for row in rows) == [
        ["-", "2026-08-01T12:00:00Z", "2026-08-01T12:00:00Z", "never", "0", "-", "-"],
        [
            "ann", "2026-08-01T11:00:00Z", "2026-08-01T11:59:30Z", "2026-08-01T12:14:30Z", "7",
            "::1", "Mozilla/5.0 (X11; Linux x86_64; rv:128.…",
        ],
    ]  # fmt: skip
    assert record.handle.hex() in {row.split()[0] for row in rows}


def test_json(world: World) -> None:
    [record] = world.make(principal=HOSTILE, address="::1", userAgent=FIREFOX, uses=2)
    world.make(principal="somebody else")
    code, out, err = world.do("list", world.url, "--json", "--principal", HOSTILE)
    assert (code, err) == (0, "1 session\n")
    assert json.loads(out) == {
        "handle": record.handle.hex(),
        "principal": HOSTILE,
        "created": "2026-08-01T12:00:00Z",
        "lastModified": "2026-08-01T12:00:00Z",
        "deadline": "2026-08-01T12:15:00Z",
        "requestCount": 2,
        "address": "::1",
        "userAgent": FIREFOX,
    }
    assert out.isascii() and out.count("\n") == 1 and out[:-1].isprintable()
    world.make(idle=1e12)  # beyond what a calendar knows
    code, out, err = world.do("list", world.url, "--json")
    assert None in [json.loads(line)["deadline"] for line in out.splitlines()]


def test_nothingForATerminalToObey(world: World) -> None:
    world.make(principal=HOSTILE, address=HOSTILE, userAgent=HOSTILE)
    world.make(principal=HOSTILE[1:] * 99, address=HOSTILE[2:] * 99, userAgent="\x00" * 9999)
    _, out, err = world.do("list", world.url)
    assert all(line.isprintable() for line in out.split("\n")) and out.count("\n") == 3
    assert err == "2 sessions\n"
    assert max(map(len, out.splitlines())) < 250


def test_nothingPrivate(world: World) -> None:
    [record] = world.make(set={"dpassword": b"s\xa6opensesame"})
    for options in [], ["--json"]:
        _, out, _ = world.do("list", world.url, *options)
        assert record.handle.hex() in out
        for private in record.key.hex(), record.seed.hex(), "password", "opensesame":
            assert private not in out


def test_rowsComeAsTheyAreRead(world: World) -> None:
    """
    What is shown is not gathered: it is out before the next page is asked for.
    """
    world.make(600)
    out, err = StringIO(), StringIO()
    shown: list[int] = []
    result(run(world.clock, ["list", world.url], out, err, lambda: shown.append(out.tell())))
    assert len(shown) > 2 and shown == sorted(set(shown))
    assert err.getvalue() == "600 sessions\n"
    assert len(set(out.getvalue().splitlines())) == 601


def test_end(world: World) -> None:
    one, two, three = (record.handle.hex() for record in world.make(3))
    code, out, err = world.do("end", world.url, one, "00" * 16, two.upper(), "--keep", two)
    assert (code, out) == (1, "")
    assert err == f"1 session ended\nno session has the handle {'00' * 16}\n"
    assert world.do("end", world.url, two) == (0, "", "1 session ended\n")
    assert three in world.do("list", world.url)[1]


def test_endByPrincipal(world: World) -> None:
    kept, *_ = (record.handle.hex() for record in world.make(3, principal="ann"))
    world.make(2, principal="")
    ended = world.do("end", world.url, "--principal", "ann", "--keep", kept)
    assert ended == (0, "", "2 sessions ended\n")
    assert world.do("end", world.url, "--principal", "") == (0, "", "2 sessions ended\n")
    assert world.do("end", world.url, "--principal", "bob") == (0, "", "0 sessions ended\n")
    assert world.do("list", world.url)[2] == "1 session\n"


@pytest.mark.parametrize(
    ("time", "count"),
    [
        ("2026-08-01T11:30:00Z", 2),
        ("2026-08-01T11:30", 2),
        ("2026-08-01 13:30:00+02:00", 2),
        ("2026-08-01T12:00:00", 3),
        ("2026-08-01", 1),
        ("0001-01-01T00:00+02:00", 0),
        ("2030-01-01", 4),
    ],
)
def test_endBefore(world: World, time: str, count: int) -> None:
    for ago in (86400.0, 3600.0, 60.0, 0.0):
        world.make(ago=ago)
    assert world.do("end", world.url, "--before", time)[2] == (
        f"{count} session{'s' * (count != 1)} ended\n"
    )
    assert world.do("list", world.url)[2][0] == str(4 - count)


def test_endAll(world: World) -> None:
    kept = world.make(1200)[7].handle.hex()
    ended = world.do("end", world.url, "--all", "--keep", kept)
    assert ended == (0, "", "1,199 sessions ended\n")
    assert world.do("list", world.url, "--json")[1][12:44] == kept


def test_onATerminalItIsSeenToGoOn(world: World) -> None:
    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    world.make(300)
    err = Terminal()
    assert result(run(world.clock, ["end", world.url, "--all"], StringIO(), err)) == 0
    assert err.getvalue() == "256 sessions ended\r300 sessions ended\r300 sessions ended\n"


SECRET = "s3cr3t/@ word"
URL = f"postgresql://me:{SECRET}@localhost/x"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["list"], "required: STORE"),
        (["list", "--json", "s", URL], "unrecognized arguments"),
        (["list", "--principal", "\udcff", "s"], "a name is text"),
        ([URL], "invalid choice"),
        (["migrate", "s", "t", URL], "unrecognized arguments"),
        (["end", "s"], "--before or --all"),
        (["end", "s", "--all", "--principal", "ann"], "--before or --all"),
        (["end", "s", "00" * 16, "--before", "2026-08-01"], "--before or --all"),
        (["end", "s", "00" * 16, "--principal", ""], "--before or --all"),
        (["end", "s", "--keep", "00" * 16], "--before or --all"),
        (["end", "s", "00" * 15 + " 0"], "32 hexadecimal digits"),
        (["end", "s", URL], "32 hexadecimal digits"),
        (["end", "s", "--all", "--keep", "x"], "32 hexadecimal digits"),
        (["end", "s", "--before", "yesterday"], "a time is like"),
        (["end", "s", "--before", URL], "a time is like"),
    ],
)
def test_wrongArguments(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        result(run(Clock(), arguments, StringIO(), StringIO()))
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert "s3cr3t" not in printed and "word" not in printed


@pytest.mark.parametrize("command", [["list"], ["end", "--all"], ["end", "--principal", "ann"]])
@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sqlite:///nowhere.db", "there is no file "),
        ("sqlite:///text.db", "stopped: "),
        ("memory:", "by its own process only"),
        ("memcached://127.0.0.1:1", "this store cannot "),
        ("$NOWHERE", "no environment variable NOWHERE"),
        (f"${URL}", "no environment variable of that name"),
        ("nonsense", "begins with one of"),
        (f"redis://me:{SECRET}", "redis"),
    ],
)
def test_storesThatCannotBeUsed(world: World, command: list[str], url: str, said: str) -> None:
    Path("text.db").write_text("This is no database." * 99)
    code, out, err = world.do(command[0], url, *command[1:])
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert said.lower() in err.lower()
    assert "s3cr3t" not in err
    assert not Path("nowhere.db").exists()


def test_theDocumentation() -> None:
    """
    What it shows can be given, and its table is the one that is printed.
    """
    pages = [ROOT / "README.rst", *(ROOT / "docs").rglob("*.rst")]
    shown = [
        shlex.split(line)
        for page in pages
        for line in re.findall(r"^ +\$ python -m twsessions ([^|\n]+)", page.read_text(), re.M)
    ]
    assert {_parser().parse_args(one).command for one in shown} == {"list", "end", "migrate"}
    assert f"   {_HEAD}" in (ROOT / "docs/howto/operating.rst").read_text()


# The real program


def program(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "twsessions", *arguments],
        env=dict(os.environ, PYTHONPATH=str(ROOT), **environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_whileTheSiteRuns(world: World) -> None:
    port = freePort()
    ann, bob, nobody = (Visitor(port) for _ in range(3))
    with running("klein_login", Path(), port):
        for visitor, name in (ann, "ann"), (bob, "bob\x1b[31m"):
            assert f"You are {name}." in visitor.post("/login", name=name)
        nobody.get()
        url = "sqlite:///klein_login.db"
        code, out, err = finish(program("list", "$STORE", STORE=url))
        assert (code, err) == (0, "3 sessions\n")
        assert "bob\\x1b[31m" in out and "\x1b" not in out
        assert finish(program("end", url, "--principal", "ann")) == (0, "", "1 session ended\n")
        assert "You are nobody" in ann.get()
        assert "You are bob" in bob.get()
        [found] = re.findall(r"(\w{32})  bob", out)
        assert finish(program("end", url, found)) == (0, "", "1 session ended\n")
        assert "You are nobody" in bob.get()
        code, out, err = finish(program("end", url, "--before", "2100-01-01"))
        assert (code, err) == (0, "3 sessions ended\n")


def test_aServerThatIsAway() -> None:
    for scheme in "redis", "postgresql":
        url = f"{scheme}://me:s3cr3t@127.0.0.1:{freePort()}/0"
        for command in (["list", url], ["end", url, "--all"]):
            code, out, err = finish(program(*command))
            assert (code, out, err.count("\n")) == (1, "", 1), err
            assert err.startswith("stopped: ") and "s3cr3t" not in err


def test_nobodyReads(world: World) -> None:
    """
    As C{| head} does.
    """
    world.clock.advance(1e9)  # for the real clock they are not due
    world.make(3000)
    process = program("list", world.url)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == 1


def test_interrupted(world: World) -> None:
    """
    What it has done until then is counted.
    """
    world.clock.advance(1e9)
    world.make(3000)
    # Who runs the tests in the background of a shell ignores it, and so would the program.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = program("list", world.url)
    finally:
        signal.signal(signal.SIGINT, before)
    assert process.stdout is not None
    process.stdout.readline()  # it has begun; it cannot end before most of this is read
    process.send_signal(signal.SIGINT)
    rows = process.stdout.read().count("\n")
    code, _, err = finish(process)
    assert code == 1 and rows < 3000
    assert err == f"{rows:,} sessions\nstopped: interrupted; it can be run again\n"
