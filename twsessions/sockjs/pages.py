"""
What is not a connection: the greeting, C{/info}, and the page for iframes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from html import escape

__all__ = ["GREETING", "iframe", "info"]

GREETING = b"Welcome to SockJS!\n"

_IFRAME = """\
<!DOCTYPE html>
<html>
<head>
  <meta http-equiv="X-UA-Compatible" content="IE=edge" />
  <meta http-equiv="Content-Type" content="text/html; charset=UTF-8" />
  <script src="{url}"></script>
  <script>
    document.domain = document.domain;
    SockJS.bootstrap_iframe();
  </script>
</head>
<body>
  <h2>Don't panic!</h2>
  <p>This is a SockJS hidden iframe. It's used for cross domain magic.</p>
</body>
</html>
"""


def iframe(sockjsURL: str) -> tuple[bytes, bytes]:
    """
    The page, and its ETag.

    @param sockjsURL: of the client library.
    """
    page = _IFRAME.format(url=escape(sockjsURL)).encode("utf-8")
    return page, b'"%b"' % sha256(page).hexdigest()[:32].encode("ascii")


def info(
    websocket: bool, cookieNeeded: bool, origins: list[str], entropy: Callable[[int], bytes]
) -> bytes:
    """
    What a client asks for first.

    @param entropy: such as L{os.urandom}: clients make ids of it.
    """
    return json.dumps(
        {
            "websocket": websocket,
            "cookie_needed": cookieNeeded,
            "origins": origins,
            "entropy": int.from_bytes(entropy(4), "big"),
        },
        separators=(",", ":"),
    ).encode("ascii")
