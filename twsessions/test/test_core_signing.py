"""
Tests for L{twsessions.core.signing}.
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import sha256

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from twsessions.core.signing import Signer

KEY, OTHER, THIRD = b"k" * 16, b"o" * 32, b"t" * 100
KEYS = st.lists(st.binary(min_size=16, max_size=80), min_size=1, max_size=4, unique=True)
VALUES = st.binary(max_size=80)


@given(KEYS, VALUES)
def test_whatWasSignedComesBack(keys: list[bytes], value: bytes) -> None:
    signer = Signer(keys, b"test")
    signed = signer.sign(value)
    assert signed.startswith(value + b".") and len(signed) == len(value) + 44
    assert signer.unsign(signed) == value
    assert Signer(tuple(keys), b"test").sign(value) == signed, "a signature is a function"


def test_signaturesAreFixed() -> None:
    """
    Cookies out there carry them: HMAC-SHA-256 under a key for the purpose.
    """
    derived = hmac.digest(KEY, b"twsessions test", "sha256")
    wanted = urlsafe_b64encode(hmac.digest(derived, b"value", "sha256")).rstrip(b"=")
    assert Signer([KEY], b"test").sign(b"value") == b"value." + wanted
    assert wanted == b"f-2NhRyrp5CjWPutQHpEmk_rJ2ehASqVxmDJAAZZ0Pk"


@given(VALUES, st.permutations([KEY, OTHER, THIRD]))
def test_theFirstKeySignsAndEveryKeyVerifies(value: bytes, keys: list[bytes]) -> None:
    signer = Signer(keys, b"test")
    for key in keys:
        alone = Signer([key], b"test")
        assert signer.unsign(alone.sign(value)) == value
        assert (alone.unsign(signer.sign(value)) == value) == (key is keys[0])
        assert (signer.sign(value) == alone.sign(value)) == (key is keys[0])


@given(VALUES)
def test_rotationOfKeys(value: bytes) -> None:
    """
    A new key is put in front; the old one's cookies hold until it is removed.
    """
    before, during = Signer([KEY], b"test"), Signer([OTHER, KEY], b"test")
    after = Signer([OTHER], b"test")
    assert during.unsign(before.sign(value)) == value
    assert before.unsign(during.sign(value)) is None
    assert after.unsign(during.sign(value)) == value
    assert after.unsign(before.sign(value)) is None


@given(VALUES, st.binary(max_size=20), st.binary(max_size=20))
def test_aSignatureForAnotherPurposeIsNone(value: bytes, one: bytes, other: bytes) -> None:
    assume(one != other)
    assert Signer([KEY], one).unsign(Signer([KEY], other).sign(value)) is None


@given(VALUES, st.data())
def test_anyOtherByteIsNoticed(value: bytes, data: st.DataObject) -> None:
    signer = Signer([KEY, OTHER], b"test")
    signed = bytearray(signer.sign(value))
    place = data.draw(st.integers(0, len(signed) - 1))
    signed[place] ^= data.draw(st.integers(1, 255))
    assert signer.unsign(bytes(signed)) is None


@given(st.binary(max_size=120))
def test_anythingIsReadAndNothingOfItIsGood(sent: bytes) -> None:
    assert Signer([KEY, OTHER], b"test").unsign(sent) is None


@given(VALUES)
def test_oneSpellingOfEachSignature(value: bytes) -> None:
    """
    The last of 43 characters has two bits to spare: four spellings for a
    decoder, and one for us.
    """
    signer = Signer([KEY], b"test")
    signed = signer.sign(value)
    head, last = signed[:-1], signed[-1:]
    alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    decoded = urlsafe_b64decode(signed[-43:] + b"=")
    same = [
        bytes((c,))
        for c in alphabet
        if urlsafe_b64decode(head[-42:] + bytes((c,)) + b"=") == decoded
    ]
    assert len(same) == 4 and last in same
    assert [c for c in same if signer.unsign(head + c) is not None] == [last]
    for more in (signed + b"=", signed + b"\n", b" " + signed, signed[:-1], head + b"+"):
        assert signer.unsign(more) is None


@given(VALUES)
def test_dotsInTheValue(value: bytes) -> None:
    signer = Signer([KEY], b"test")
    dotted = b"." + value + b"."
    assert signer.unsign(signer.sign(dotted)) == dotted
    twice = signer.sign(signer.sign(value))
    assert signer.unsign(twice) == signer.sign(value)
    signature = signer.sign(value).rpartition(b".")[2]
    assert signer.unsign(signature) is None
    assert signer.unsign(value + signature) is None


@pytest.mark.parametrize(
    ("keys", "error"),
    [
        ([], ValueError),
        ((), ValueError),
        ([b"x" * 15], ValueError),
        ([KEY, b""], ValueError),
        (KEY, TypeError),
        ("x" * 32, TypeError),
        (["x" * 32], TypeError),
        ([KEY, None], TypeError),
        ([bytearray(KEY)], TypeError),
    ],
)
def test_badKeysAreRefused(keys: object, error: type[Exception]) -> None:
    with pytest.raises(error) as refused:
        Signer(keys, b"test")  # type: ignore[arg-type]
    assert "xxxx" not in str(refused.value) and "kkkk" not in str(refused.value)


def test_keysAreNotShown() -> None:
    signer = Signer([KEY, OTHER], b"test")
    assert repr(signer) == "<Signer with 2 keys>"
    held = repr(vars(signer))
    for key in (KEY, OTHER, sha256(KEY).digest()):
        assert repr(key)[2:-1] not in held and key.hex() not in held
