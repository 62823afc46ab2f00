"""
The session's cookie: from header bytes to ids, and back.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from twsessions.core.ids import isUid
from twsessions.core.signing import Signer

__all__ = ["NOTHING", "CookiePolicy", "Sent"]

_BASE = "twsession"
_UID = 64
_SIGNATURE = 44  # a dot and 43 characters
_LONGEST = 4096  # octets of name and value: RFC 6265bis 5.6
_LONGEST_ATTRIBUTE = 1024  # likewise
_LONGEST_LIFE = 400 * 86400  # seconds: RFC 6265bis 5.5
_PAST = "Thu, 01 Jan 1970 00:00:00 GMT"

_isToken = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch  # RFC 9110 5.6.2
_isAttribute = re.compile(r"[\x20-\x3a\x3c-\x7e]*").fullmatch  # RFC 6265 4.1.1 av-octet
_isDomain = re.compile(
    r"(?=.{1,253}\Z)[0-9A-Za-z]([0-9A-Za-z-]{0,61}[0-9A-Za-z])?"
    r"(\.[0-9A-Za-z]([0-9A-Za-z-]{0,61}[0-9A-Za-z])?)*"
).fullmatch


@dataclass(slots=True)
class Sent:
    """
    What a request's cookies say.

    @ivar uids: the different ids that are spelled, and signed, as they must be.
    @ivar malformed: how many values were not.
    @ivar presented: whether there was any cookie of that name.
    """

    uids: tuple[bytes, ...]
    malformed: int
    presented: bool


NOTHING = Sent((), 0, False)
"""What a request without a Cookie header says."""


class CookiePolicy:
    """
    Name and attributes of the session's cookie; combinations that no browser
    takes are refused. It does not change once made.

    By default: HttpOnly, SameSite=Lax, Path=/, to end with the browser; over TLS
    Secure and named C{__Host-twsession}, in plain C{twsession}. (OWASP ASVS 5.0,
    3.3.1 to 3.3.5; RFC 6265bis 4.1.)
    """

    def __init__(
        self,
        name: str | None = None,
        secure: bool | Literal["auto"] = "auto",
        httpOnly: bool = True,
        sameSite: Literal["lax", "strict", "none"] = "lax",
        path: str = "/",
        domain: str | None = None,
        maxAge: int | None = None,
        partitioned: bool = False,
        keys: Sequence[bytes] = (),
    ) -> None:
        """
        @param name: used to the letter. By default C{"twsession"}, with the
            strictest prefix (C{__Host-}, C{__Secure-}) that is possible.
        @param secure: L{True}: all requests came over TLS, though it ends in
            front of this process; L{False}: none did; C{"auto"}: the connection
            tells.
        @param httpOnly: scripts cannot read it.
        @param sameSite: C{"none"} needs C{secure=True}.
        @param path: the browser sends it below this path only.
        @param domain: to share it with subdomains. By default this host only.
        @param maxAge: seconds the browser keeps it; by default until it ends.
        @param partitioned: one for each embedding site (CHIPS); needs
            C{secure=True}.
        @param keys: secrets to sign it with: the first signs, all verify.
        @raise ValueError: a combination that cannot be; says why.
        @raise TypeError: a value of a wrong type.
        """
        if secure is not True and secure is not False and secure != "auto":
            raise ValueError(f"secure is True, False or 'auto', not {secure!r}")
        for flag, value in (("httpOnly", httpOnly), ("partitioned", partitioned)):
            if not isinstance(value, bool):
                raise TypeError(f"{flag} is True or False, not {value!r}")
        if sameSite not in ("lax", "strict", "none"):
            raise ValueError(f"sameSite is 'lax', 'strict' or 'none', not {sameSite!r}")
        if sameSite == "none" and secure is not True:
            raise ValueError("sameSite='none' needs secure=True: browsers refuse it otherwise")
        if partitioned and secure is not True:
            raise ValueError("partitioned=True needs secure=True: browsers refuse it otherwise")
        _checkAttribute("path", path)
        if not path.startswith("/"):
            raise ValueError(f"path must begin with '/', as {path!r} does not")
        if domain is not None:
            _checkAttribute("domain", domain)
            if not _isDomain(domain.removeprefix(".")):
                raise ValueError(f"{domain!r} is no domain")
        if maxAge is not None:
            if isinstance(maxAge, bool) or not isinstance(maxAge, int):
                raise TypeError(f"maxAge is a whole number of seconds, not {maxAge!r}")
            if not 0 < maxAge <= _LONGEST_LIFE:
                raise ValueError(
                    f"maxAge is from 1 to {_LONGEST_LIFE} seconds (400 days), not {maxAge}"
                )
        hostOnly = path == "/" and domain is None
        if name is not None:
            _checkName(name, secure, httpOnly, hostOnly)
        if name is not None:
            names = {False: name, True: name}
        else:
            names = {False: _BASE, True: ("__Host-" if hostOnly else "__Secure-") + _BASE}
        self._names = {kind: text.encode("ascii") for kind, text in names.items()}
        for text in names.values():
            if len(text) + 1 + _UID + (_SIGNATURE if keys else 0) > _LONGEST:
                raise ValueError(f"the name is too long: a cookie has at most {_LONGEST} octets")
        self.secure = secure
        self.httpOnly = httpOnly
        self.sameSite = sameSite
        self.path = path
        self.domain = domain
        self.maxAge = maxAge
        self.partitioned = partitioned
        self._signers = (
            {kind: Signer(keys, b"cookie " + text) for kind, text in self._names.items()}
            if keys
            else {}
        )
        self._starts = {kind: text + b"=" for kind, text in self._names.items()}
        self._isUsual = {
            kind: re.compile(re.escape(start) + b"([0-9a-f]{64})").fullmatch
            for kind, start in self._starts.items()
        }
        self._tails = {kind: self._attributes(kind, maxAge) for kind in (False, True)}
        self._deleted = {
            kind: self._attributes(kind, 0) + f"; Expires={_PAST}".encode("ascii")
            for kind in (False, True)
        }

    def __repr__(self) -> str:
        name = self._names[self.secure is not False].decode("ascii")
        signed = ", signed" if self._signers else ""
        return f"<CookiePolicy {name}{self._tails[self.secure is not False].decode()}{signed}>"

    def _attributes(self, secure: bool, maxAge: int | None) -> bytes:
        text = f"; Path={self.path}"
        if self.domain is not None:
            text += f"; Domain={self.domain}"
        if maxAge is not None:
            text += f"; Max-Age={maxAge}"
        if secure:
            text += "; Secure"
        if self.httpOnly:
            text += "; HttpOnly"
        text += f"; SameSite={self.sameSite.capitalize()}"
        if self.partitioned:
            text += "; Partitioned"
        return text.encode("ascii")

    def nameFor(self, secure: bool) -> bytes:
        """
        The cookie's name on secure or plain requests.
        """
        return self._names[secure]

    def setCookie(self, uid: bytes, secure: bool) -> bytes:
        """
        The value of the Set-Cookie header that gives the browser C{uid}.
        """
        signer = self._signers.get(secure)
        value = uid if signer is None else signer.sign(uid)
        return self._starts[secure] + value + self._tails[secure]

    def deleteCookie(self, secure: bool) -> bytes:
        """
        The value of the Set-Cookie header that takes it away again. It repeats
        every attribute, or browsers would keep the cookie.
        """
        return self._starts[secure] + self._deleted[secure]

    def candidates(self, lines: Sequence[bytes], secure: bool, limit: int = 4) -> Sent:
        """
        The ids that a request presents.

        Names are compared byte for byte; nothing is unquoted, decoded or
        trimmed but spaces and tabs around the pairs: what other parsers do more
        has been used to smuggle cookies past a C{__Host-} prefix.

        @param lines: the values of the request's Cookie headers.
        @param secure: whether the request counts as secure.
        @param limit: with more different ids than this none is taken: no
            browser sends that, and each would cost a look-up.
        """
        start = self._starts[secure]
        if len(lines) == 1 and not self._signers:
            # What nearly every browser sends: this cookie, and nothing else.
            usual = self._isUsual[secure](lines[0])
            if usual is not None:
                return Sent(usual.groups(), 0, True)
        uids: list[bytes] = []
        malformed, presented = 0, False
        signer = self._signers.get(secure)
        for line in lines:
            if start not in line:
                continue
            for pair in line.split(b";"):
                pair = pair.strip(b" \t")
                if not pair.startswith(start):
                    continue
                presented = True
                given = pair[len(start) :]
                value = given if signer is None else signer.unsign(given)
                if value is None or not isUid(value):
                    malformed += 1
                elif value not in uids:
                    uids.append(value)
        if not presented:
            return NOTHING
        if len(uids) > limit:
            return Sent((), malformed + len(uids), True)
        return Sent(tuple(uids), malformed, True)

    def candidatesOf(self, lines: Sequence[bytes]) -> tuple[Sent, Sent]:
        """
        The L{candidates} if the request is plain, and if it is secure, which is
        not known yet.
        """
        if len(lines) == 1 and not self._signers and self._names[False] != self._names[True]:
            for secure, isUsual in self._isUsual.items():
                usual = isUsual(lines[0])
                if usual is not None:
                    sent = Sent(usual.groups(), 0, True)
                    return (NOTHING, sent) if secure else (sent, NOTHING)
        return self.candidates(lines, False), self.candidates(lines, True)


def _checkAttribute(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} is a str, not {value!r}")
    if not _isAttribute(value):
        raise ValueError(f"{name} has a character that a cookie's attribute cannot have: {value!r}")
    if len(value) > _LONGEST_ATTRIBUTE:
        raise ValueError(f"{name} has more than {_LONGEST_ATTRIBUTE} octets")


def _checkName(name: object, secure: object, httpOnly: bool, hostOnly: bool) -> None:
    if not isinstance(name, str):
        raise TypeError(f"name is a str, not {name!r}")
    if not _isToken(name):
        raise ValueError(f"{name!r} is no name for a cookie: only token characters, RFC 9110 5.6.2")
    # Browsers look at prefixes without regard to case (RFC 6265bis 5.4).
    lower = name.lower()
    if lower.startswith(("__host-", "__secure-", "__http-")) and secure is not True:
        raise ValueError(f"a cookie named {name!r} needs secure=True: browsers refuse it otherwise")
    if lower.startswith("__host-") and not hostOnly:
        raise ValueError(f"a cookie named {name!r} needs path='/' and no domain")
    if lower.startswith(("__http-", "__host-http-")) and not httpOnly:
        raise ValueError(f"a cookie named {name!r} needs httpOnly=True")
