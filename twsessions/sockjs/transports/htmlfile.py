"""
A page in a hidden iframe that never ends. A frame is a script.
"""

from __future__ import annotations

from twsessions.sockjs.packet import Framed
from twsessions.sockjs.transports.jsonp import inScript

__all__ = ["FORMAT", "TYPE", "prelude"]

FORMAT = Framed(
    lambda frame: f"<script>\np({inScript(frame)});\n</script>\r\n".encode(), streams=True
)

TYPE = b"text/html; charset=UTF-8"

_PAGE = """\
<!doctype html>
<html><head>
  <meta http-equiv="X-UA-Compatible" content="IE=edge" />
  <meta http-equiv="Content-Type" content="text/html; charset=UTF-8" />
</head><body><h2>Don't panic!</h2>
  <script>
    document.domain = document.domain;
    var c = parent.%s;
    c.start();
    function p(d) {c.message(d);};
    window.onload = function() {c.stop();};
  </script>
"""


def prelude(callback: str) -> bytes:
    """
    The page's beginning: as long as browsers need to look at it.

    @param callback: checked already.
    """
    return (_PAGE % callback).ljust(1024 + 14).encode("ascii") + b"\r\n\r\n"
