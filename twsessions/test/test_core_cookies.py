"""
The cookie's policy: what is refused, what is sent, what is taken.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from twsessions import CookiePolicy
from twsessions.core.cookies import Sent
from twsessions.core.ids import makeUid

GOOD, OTHER = makeUid(os.urandom), makeUid(os.urandom)
OLD, NEW = b"o" * 32, b"n" * 32

REFUSED = [
    ({"sameSite": "none"}, "secure=True"),
    ({"sameSite": "none", "secure": False}, "secure=True"),
    ({"sameSite": "Lax"}, "sameSite"),
    ({"partitioned": True}, "secure=True"),
    ({"secure": 1}, "secure"),
    ({"secure": "yes"}, "secure"),
    ({"name": "__Host-a"}, "secure=True"),
    ({"name": "__HOST-a", "secure": True, "path": "/a"}, "path"),
    ({"name": "__Host-a", "secure": True, "domain": "a.example"}, "domain"),
    ({"name": "__Secure-a", "secure": False}, "secure=True"),
    ({"name": "__Http-a", "secure": True, "httpOnly": False}, "httpOnly"),
    ({"name": "__Host-Http-a", "secure": True, "httpOnly": False}, "httpOnly"),
    ({"name": ""}, "name"),
    ({"name": "a=b"}, "name"),
    ({"name": "a\r\n"}, "name"),
    ({"name": "a b"}, "name"),
    ({"name": "é"}, "name"),
    ({"name": "a" * 4032}, "long"),
    ({"name": "a" * 3988, "keys": [NEW]}, "long"),
    ({"path": "a"}, "begin"),
    ({"path": "/a;b"}, "path"),
    ({"path": "/\r\nSet-Cookie: x"}, "path"),
    ({"path": "/" + "a" * 1024}, "1024"),
    ({"domain": "a b"}, "domain"),
    ({"domain": ""}, "domain"),
    ({"domain": "a;b"}, "domain"),
    ({"maxAge": 0}, "maxAge"),
    ({"maxAge": 34560001}, "400 days"),
    ({"keys": [b"short"]}, "16"),
]


@pytest.mark.parametrize(("arguments", "says"), REFUSED)
def test_impossibleCombinationsAreRefused(arguments: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        CookiePolicy(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"name": b"a"}, {"path": None}, {"domain": 1}, {"maxAge": 1.5}, {"maxAge": True},
        {"httpOnly": 1}, {"partitioned": "no"}, {"keys": ["k" * 32]},
    ],
)  # fmt: skip
def test_wrongTypesAreRefused(arguments: dict) -> None:
    with pytest.raises(TypeError):
        CookiePolicy(**arguments)


def test_whatIsJustPossible() -> None:
    for arguments in ({"maxAge": 1}, {"maxAge": 34560000}, {"name": "a" * 4031}):
        CookiePolicy(**arguments)
    signed = CookiePolicy(name="a" * 3987, keys=[NEW])
    assert len(signed.setCookie(GOOD, False).partition(b";")[0]) == 4096


def test_theDefaults() -> None:
    policy = CookiePolicy()
    assert policy.setCookie(GOOD, True) == (
        b"__Host-twsession=" + GOOD + b"; Path=/; Secure; HttpOnly; SameSite=Lax"
    )
    assert policy.setCookie(GOOD, False) == (
        b"twsession=" + GOOD + b"; Path=/; HttpOnly; SameSite=Lax"
    )


def test_allAttributes() -> None:
    policy = CookiePolicy("sid", True, False, "none", "/a", ".b.example", 60, True)
    assert policy.setCookie(GOOD, True) == (
        b"sid=" + GOOD + b"; Path=/a; Domain=.b.example; Max-Age=60; Secure; SameSite=None"
        b"; Partitioned"
    )


def test_thePrefixThatIsPossible() -> None:
    assert CookiePolicy(path="/a").nameFor(True) == b"__Secure-twsession"
    assert CookiePolicy(domain="a.example").nameFor(True) == b"__Secure-twsession"
    assert (
        CookiePolicy(name="sid").nameFor(True) == b"sid" == CookiePolicy(name="sid").nameFor(False)
    )


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"secure": True, "sameSite": "none", "partitioned": True, "maxAge": 60},
        {"name": "sid", "path": "/app", "domain": "a.example", "sameSite": "strict"},
        {"httpOnly": False, "keys": [NEW]},
    ],
)
@pytest.mark.parametrize("secure", [False, True])
def test_deletingRepeatsEveryAttribute(arguments: dict, secure: bool) -> None:
    policy = CookiePolicy(**arguments)

    def parts(line: bytes) -> tuple[bytes, set[bytes]]:
        pair, *attributes = line.split(b"; ")
        kept = {a for a in attributes if not a.startswith((b"Max-Age", b"Expires"))}
        return pair.partition(b"=")[0], kept

    deleted = policy.deleteCookie(secure)
    assert parts(deleted) == parts(policy.setCookie(GOOD, secure))
    assert b"; Max-Age=0" in deleted and b"1970" in deleted
    assert b"=;" in deleted


def test_keysRotate() -> None:
    before, both, after = (CookiePolicy(keys=keys) for keys in ([OLD], [NEW, OLD], [NEW]))
    sent = before.setCookie(GOOD, False).partition(b";")[0]
    assert both.candidates([sent], False).uids == (GOOD,)
    assert after.candidates([sent], False) == Sent((), 1, True)
    renewed = both.setCookie(GOOD, False).partition(b";")[0]
    assert after.candidates([renewed], False).uids == (GOOD,)
    assert both.candidates([b"twsession=" + GOOD], False).uids == ()
    # Signed for the other cookie's name: good for nothing here.
    other = before.setCookie(GOOD, True).partition(b";")[0].partition(b"=")[2]
    assert before.candidates([b"twsession=" + other], False).uids == ()
    assert OLD.decode() not in repr(both)


@pytest.mark.parametrize(
    "line",
    [
        b"", b";;;", b"twsession", b"twsession=", b"TWSESSION=" + GOOD, b"twsession =" + GOOD,
        b"\x0btwsession=" + GOOD, b"\x0ctwsession=" + GOOD, b"\xa0twsession=" + GOOD,
        b"\xe2\x80\x80twsession=" + GOOD, b"tw%73ession=" + GOOD,
        b'$Version=1; twsession="' + GOOD + b'"',
        b"twsession[]=" + GOOD, b'twsession="' + GOOD + b'"', b"twsession=" + GOOD + b"=",
        b"twsession=" + GOOD.upper(), b"twsession=" + GOOD[:-1], b"twsession=" + GOOD + b"0",
        b"twsession= " + GOOD, b"twsession=%66" + GOOD[1:], b"twsession=" + GOOD + b"\x00",
        b"twsession=" + b"a" * 15000, b"twsession=../../etc/passwd", b"a=twsession=" + GOOD,
        b"twsession=\xef\xbc\x91" + GOOD[3:],
    ],
)  # fmt: skip
def test_nothingElseIsAnId(line: bytes) -> None:
    assert CookiePolicy().candidates([line], False).uids == ()
    # Nor does it hide a good one.
    assert CookiePolicy().candidates([line, b"twsession=" + GOOD], False).uids == (GOOD,)


def test_severalIds() -> None:
    policy, pair = CookiePolicy(), b"twsession="
    both = pair + GOOD + b"; " + pair + OTHER
    assert policy.candidates([both], False).uids == (GOOD, OTHER)
    assert policy.candidates([pair + GOOD, pair + GOOD], False).uids == (GOOD,)
    many = [makeUid(os.urandom) for _ in range(5)]
    four, five = (b";".join(pair + one for one in many[:n]) for n in (4, 5))
    assert policy.candidates([four], False).uids == (*many[:4],)
    assert policy.candidates([five], False) == Sent((), 5, True)


@given(st.binary(max_size=200), st.binary(max_size=200), st.sampled_from([b"; ", b";", b"\t;\t "]))
@example(b"twsession=", b"", b";")
def test_hostileBytesAroundAGoodOne(before: bytes, after: bytes, glue: bytes) -> None:
    policy = CookiePolicy()
    line = before + glue + b"twsession=" + GOOD + glue + after
    assert policy.candidates([line], False).uids == (GOOD,)
    signed = CookiePolicy(keys=[NEW])
    line = before + glue + signed.setCookie(GOOD, False).partition(b";")[0] + glue + after
    assert signed.candidates([line], False).uids == (GOOD,)


_pairs = st.sampled_from(
    [
        b"twsession=" + GOOD, b"__Host-twsession=" + GOOD, b"__Host-twsession=" + OTHER,
        b"twsession=" + GOOD + b"\n", b"own=" + GOOD, b"twsession=x", b"",
    ]
)  # fmt: skip


@given(st.lists(st.lists(_pairs, max_size=3).map(b"; ".join), max_size=2), st.booleans())
def test_whatIsNotKnownYet(lines: list[bytes], isSigned: bool) -> None:
    """
    The same as asking twice.
    """
    for name in (None, "own"):
        policy = CookiePolicy(name=name, keys=[NEW] if isSigned else ())
        asked = policy.candidates(lines, False), policy.candidates(lines, True)
        assert policy.candidatesOf(lines) == asked
