"""
Tests for L{twsessions.core.ids}.
"""

from __future__ import annotations

import hashlib
import os
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from twsessions.core.ids import (
    csrfTokenOf,
    handleOf,
    isUid,
    keyOf,
    logName,
    makeSeed,
    makeUid,
)

SEEDS = st.binary(min_size=16, max_size=16)
ENTROPY = st.binary(min_size=32, max_size=32)
UID = b"0123456789abcdef" * 4
EPOCHS = st.integers(0, 2**40)


@given(ENTROPY)
def test_allOfTheEntropyIsInTheId(entropy: bytes) -> None:
    asked = []

    def source(count: int) -> bytes:
        asked.append(count)
        return entropy

    uid = makeUid(source)
    assert asked == [32]
    assert bytes.fromhex(uid.decode("ascii")) == entropy
    assert isUid(uid)


def test_idsDiffer() -> None:
    assert len({makeUid(os.urandom) for _ in range(1000)}) == 1000
    assert len({makeSeed(os.urandom) for _ in range(1000)}) == 1000


@pytest.mark.parametrize(
    "spelling",
    [
        b"",
        UID.upper(),
        UID[:-1],
        UID + b"0",
        UID + b"\n",  # which a pattern's "$" would pass
        b" " + UID[1:],
        UID + b" ",
        b"0x" + UID[2:],
        UID[:-1] + b"g",
        UID[:-1] + b"\0",
        UID[:-1] + b"F",
        UID[:-1] + b"_",
        b"+" + UID[1:],
        "\uff10".encode() * 64,  # digits as well, to Unicode
        b"\xb2" * 64,
    ],
)
def test_otherSpellingsAreNone(spelling: bytes) -> None:
    assert isUid(UID)
    assert not isUid(spelling)


@given(st.binary(max_size=80) | st.binary(min_size=64, max_size=64))
@example(UID)
@example(UID[:-1] + b"A")
def test_oneSpellingOfEach(value: bytes) -> None:
    digits = re.fullmatch(rb"[0-9a-f]*", value, re.DOTALL) is not None
    assert isUid(value) == (digits and len(value) == 64)


@given(ENTROPY, st.integers(0, 63), st.sampled_from(b"ghzGZ @\n\0\xff-_"))
def test_oneWrongCharacterIsEnough(entropy: bytes, place: int, wrong: int) -> None:
    uid = bytearray(entropy.hex().encode())
    uid[place] = wrong
    assert not isUid(bytes(uid))


def test_keysAreFixed() -> None:
    """
    Stored sessions are found by them: they must never change.
    """
    assert keyOf(UID) == hashlib.sha256(UID).digest()
    assert keyOf(UID).hex() == ("a8ae6e6ee929abea3afcfc5258c8ccd6f85273e0d4626d26c7279f3250f77c8e")


@given(ENTROPY, ENTROPY)
def test_keysAreOfNoUseAsIds(one: bytes, other: bytes) -> None:
    uid = one.hex().encode()
    key = keyOf(uid)
    assert len(key) == 32 and not isUid(key)
    assert key not in (one, uid) and one not in key
    assert keyOf(key.hex().encode()) != key
    assert (keyOf(other.hex().encode()) == key) == (one == other)


@given(SEEDS, EPOCHS)
def test_derivationsAreDistinct(seed: bytes, epoch: int) -> None:
    """
    None of what is derived from a seed, or shown of an id, gives away another.
    """
    handle, token = handleOf(seed), csrfTokenOf(seed, epoch)
    assert len(handle) == 16 and handle != seed
    assert re.fullmatch(r"[0-9A-Za-z_-]{32}", token)
    shown = {handle, handle.hex().encode(), token.encode()}
    assert len(shown) == 3
    for one in shown:
        assert not isUid(one)
        assert seed not in one and seed.hex().encode() not in one
        assert handle not in token.encode() and handle.hex() not in token
    assert logName(seed.hex().encode() * 2) not in handle.hex()


@given(SEEDS, SEEDS, EPOCHS, EPOCHS)
def test_derivationsAreFunctions(one: bytes, other: bytes, first: int, second: int) -> None:
    assert (handleOf(one) == handleOf(other)) == (one == other)
    same = (one, first) == (other, second)
    assert (csrfTokenOf(one, first) == csrfTokenOf(other, second)) == same
    assert csrfTokenOf(one, first) == csrfTokenOf(one, first)
    assert csrfTokenOf(one, first) != csrfTokenOf(one, first + 1)


def test_derivationsAreFixed() -> None:
    """
    Forms out there carry tokens, and ledgers carry handles.
    """
    seed = bytes(range(16))
    assert handleOf(seed).hex() == "f290b57ea5ff1b6b577e63a9725a31aa"
    assert csrfTokenOf(seed, 0) == "b0SLjZnTgARsAHQEiW5isJaWSAn_q8Mt"
    assert csrfTokenOf(seed, 1) == "VDCKMkT4aRKxE699WQJUToYPB34yy8xW"
    assert logName(UID) == "bf0d7703"


@given(ENTROPY)
def test_theNameInTheLogTellsNothingElse(entropy: bytes) -> None:
    uid = entropy.hex().encode()
    name = logName(uid)
    assert re.fullmatch(r"[0-9a-f]{8}", name)
    assert name != uid[:8].decode() and name != keyOf(uid).hex()[:8]
    assert name == logName(uid)


def test_aSeedIsWhatItsSourceGives() -> None:
    asked = []

    def source(count: int) -> bytes:
        asked.append(count)
        return b"s" * count

    assert makeSeed(source) == b"s" * 16
    assert asked == [16]
