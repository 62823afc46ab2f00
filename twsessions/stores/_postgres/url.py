"""
URLs of PostgreSQL stores.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import isfinite
from typing import Final
from urllib.parse import parse_qsl, unquote

__all__ = ["Target", "parse"]

_SHAPE: Final = "postgresql://user:password@host:5432/database?sslmode=verify-full"
# What libpq takes as it is.
_LIBPQ: Final = (
    "application_name",
    "channel_binding",
    "host",
    "passfile",
    "require_auth",
    "sslcert",
    "sslcrl",
    "sslkey",
    "sslmode",
    "sslpassword",
    "sslrootcert",
    "target_session_attrs",
)
_OPTIONS: Final = tuple(sorted((*_LIBPQ, "schema", "timeout")))
_VALUES: Final = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "channel_binding": ("disable", "prefer", "require"),
    "target_session_attrs": (
        "any", "read-write", "read-only", "primary", "standby", "prefer-standby",
    ),
}  # fmt: skip
_hostAndPort: Final = re.compile(
    r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+|%2[Ff][^:\[\]]*)?(?::([0-9]{1,5}))?"
).fullmatch
_isSchema: Final = re.compile(r"(?!pg_)[a-z_][a-z0-9_]{0,47}").fullmatch


@dataclass(frozen=True)
class Target:
    """
    What a URL says.

    @ivar parameters: libpq's, the password among them.
    @ivar schema: the namespace of the store's tables.
    @ivar timeout: seconds for a call.
    """

    parameters: dict[str, str] = field(repr=False)
    schema: str
    timeout: float


def parse(rest: str) -> Target:
    """
    Read what comes after C{postgresql:}.

    @raise ValueError: it is not right; says what would be, and repeats nothing
        of it.
    """
    location, _, query = rest.partition("?")
    if not location.startswith("//"):
        raise ValueError(f"a PostgreSQL store's URL is like {_SHAPE}")
    if "#" in rest:
        raise ValueError("'#' in the URL of a PostgreSQL store is written %23")
    authority, _, database = location[2:].partition("/")
    who, _, hosts = authority.rpartition("@")
    options = _options(query)
    parameters: dict[str, str] = {name: options[name] for name in _LIBPQ if name in options}
    if hosts:
        pairs = [_address(host) for host in hosts.split(",")]
        parameters["port"] = ",".join(port for _, port in pairs)
        names = ",".join(host for host, _ in pairs)
        if names and "host" in parameters:
            raise ValueError("the host is given twice: in its place, and as an option")
        parameters["host"] = names or parameters.get("host", "")
        if len(pairs) > 1:
            parameters.setdefault("target_session_attrs", "read-write")
    user, _, password = who.partition(":")
    if "/" in database:
        raise ValueError(f"a database's name has no '/' (or it is written %2F): {_SHAPE}")
    for name, value in ("user", user), ("password", password), ("dbname", database):
        if value:
            parameters[name] = unquote(value)
    if any("\0" in value for value in parameters.values()):
        raise ValueError("there is a NUL in the URL of a PostgreSQL store")
    if "sslrootcert" in parameters:
        parameters.setdefault("sslmode", "verify-full")
    return Target(
        parameters,
        _schema(options.get("schema", "twsessions")),
        _timeout(options.get("timeout", "1.5")),
    )


def _options(query: str) -> dict[str, str]:
    if "@" in query:
        raise ValueError("'?', '/' and '@' in a password are written %3F, %2F and %40")
    options: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True, max_num_fields=30):
        if name not in _OPTIONS:
            # Named only if it can be nothing but a name.
            what = f" called {name!r}" if re.fullmatch("[A-Za-z_]{1,30}", name) else ""
            raise ValueError(
                f"a PostgreSQL store has no option{what}; it has {', '.join(_OPTIONS)}"
            )
        if name in options:
            raise ValueError(f"the option {name} is given twice")
        allowed = _VALUES.get(name)
        if allowed is not None and value not in allowed:
            raise ValueError(f"the option {name} is one of {', '.join(allowed)}")
        options[name] = value
    return options


def _address(text: str) -> tuple[str, str]:
    match = _hostAndPort(text)
    if match is None or (match[2] and not 0 < int(match[2]) < 65536):
        raise ValueError(f"no host, or no port, as they should be: {_SHAPE}")
    return unquote(match[1] or "").strip("[]"), match[2] or ""


def _schema(text: str) -> str:
    if not _isSchema(text):
        raise ValueError(
            "the option schema is a name of up to 48 small letters, digits and underscores, which"
            " does not begin with a digit or with pg_"
        )
    return text


def _timeout(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not (isfinite(seconds) and seconds >= 0.01):
        raise ValueError("the option timeout is a number of seconds, 0.01 or more")
    return seconds
