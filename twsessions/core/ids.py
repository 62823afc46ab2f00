"""
Make and check session ids, and what is derived from them.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64encode
from binascii import hexlify
from collections.abc import Callable
from hashlib import blake2b, sha256

__all__ = ["csrfTokenOf", "handleOf", "isUid", "keyOf", "logName", "makeSeed", "makeUid"]

_isHex = re.compile(rb"[0-9a-f]{64}").fullmatch


def makeUid(entropy: Callable[[int], bytes]) -> bytes:
    """
    A new id: 64 lower-case hexadecimal digits of 256 random bits, as Twisted's.
    (OWASP ASVS 5.0, 7.2.3 asks for 128.)

    @param entropy: such as L{os.urandom}.
    """
    return hexlify(entropy(32))


def isUid(value: object) -> bool:
    """
    Whether this is spelled as an id is: exactly one spelling is. To be asked
    before any store is.
    """
    return isinstance(value, bytes) and _isHex(value) is not None


def keyOf(uid: bytes) -> bytes:
    """
    What a store knows a session by: 32 bytes that do not lead back to the id.
    The id is random throughout, so a plain hash is enough.
    """
    return sha256(uid).digest()


def makeSeed(entropy: Callable[[int], bytes]) -> bytes:
    """
    16 bytes, private to a session's record and the same for its whole life.
    """
    return entropy(16)


def handleOf(seed: bytes) -> bytes:
    """
    16 bytes that name a session to people: of no use as an id.
    """
    return blake2b(key=seed, person=b"handle", digest_size=16).digest()


def csrfTokenOf(seed: bytes, epoch: int) -> str:
    """
    A token for forms: 32 characters that fit into a URL.

    @param epoch: logins so far; another one makes another token.
    """
    token = blake2b(b"%d" % epoch, key=seed, person=b"csrf", digest_size=24).digest()
    return urlsafe_b64encode(token).decode("ascii")


def logName(uid: bytes) -> str:
    """
    8 characters to tell sessions apart by in a log; they tell nothing else.
    """
    return blake2b(uid, person=b"log", digest_size=4).hexdigest()
