"""
Sign and verify, with key rotation.
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from hashlib import sha256

__all__ = ["Signer"]

_LEAST = 16  # bytes in a key


class Signer:
    """
    Appends a signature: HMAC-SHA-256 (RFC 2104), base64url without padding.
    The first key signs, every key verifies: a new one is put in front, and the
    old ones are taken out when what they signed has ended.
    """

    def __init__(self, keys: Sequence[bytes], purpose: bytes) -> None:
        """
        @param keys: at least one, each of 16 bytes or more.
        @param purpose: what is signed; a signature for another purpose is none.
        @raise ValueError: no key, or a short one.
        @raise TypeError: a key that is not bytes.
        """
        if isinstance(keys, (bytes, str)):
            raise TypeError("keys is a list of keys, not one")
        if not keys:
            raise ValueError("signing needs at least one key")
        for key in keys:
            if not isinstance(key, bytes):
                raise TypeError(f"a signing key is bytes, not {type(key).__name__}")
            if len(key) < _LEAST:
                raise ValueError(f"a signing key has at least {_LEAST} bytes; one has {len(key)}")
        self._macs = [
            hmac.new(hmac.new(key, b"twsessions " + purpose, sha256).digest(), b"", sha256)
            for key in keys
        ]

    def __repr__(self) -> str:
        return f"<Signer with {len(self._macs)} keys>"

    def sign(self, value: bytes) -> bytes:
        """
        C{value}, a dot, and its signature by the first key.
        """
        return value + b"." + self._signature(self._macs[0], value)

    def unsign(self, signed: bytes) -> bytes | None:
        """
        What was signed, or L{None} if none of the keys signed it.
        """
        value, dot, given = signed.rpartition(b".")
        if not dot:
            return None
        found = False
        for mac in self._macs:
            # Compared as text: of all spellings of the same bytes only one is good.
            found |= hmac.compare_digest(self._signature(mac, value), given)
        return value if found else None

    @staticmethod
    def _signature(mac: hmac.HMAC, value: bytes) -> bytes:
        mac = mac.copy()
        mac.update(value)
        return urlsafe_b64encode(mac.digest()).rstrip(b"=")
