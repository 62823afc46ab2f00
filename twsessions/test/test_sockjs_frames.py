"""
SockJS frames, and the messages of clients: text in, text out.
"""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from twsessions.sockjs.frames import (
    BrokenFrame,
    closeFrame,
    messagesFrame,
    parseMessages,
    quote,
)
from twsessions.sockjs.session import Close
from twsessions.sockjs.transports import eventsource, htmlfile, jsonp, xhr

anyText = st.text(alphabet=st.characters())  # lone surrogates as well


@given(st.lists(anyText))
@example(["\ud800", "\u2028", "</script>", "\0", "%20", "\x7f"])
def test_quoteAndParse(messages: list[str]) -> None:
    """
    What is quoted is JSON of the same text, can be written as UTF-8, and is
    read back by our own parser too.
    """
    frame = messagesFrame([quote(message) for message in messages])
    assert frame[0] == "a"
    frame.encode("utf-8")
    assert json.loads(frame[1:]) == messages
    assert parseMessages(frame[1:]) == messages


@given(st.lists(anyText), st.sampled_from(["", " ", "\n\t", " \r "]), st.booleans())
def test_parseIsJSON(messages: list[str], space: str, ascii: bool) -> None:
    """
    Arrays of strings are understood however they are spelled.
    """
    inner = f"{space},{space}".join(json.dumps(one, ensure_ascii=ascii) for one in messages)
    assert parseMessages(f"{space}[{space}{inner}{space}]{space}") == messages


@given(st.one_of(st.text(), st.text(alphabet='[]",\\ u0"a')), st.booleans())
def test_parseIsStrict(text: str, single: bool) -> None:
    """
    Whatever else is sent is refused as such, exactly when it is not JSON of an
    array of strings.
    """
    try:
        expected = json.loads(text)
    except (ValueError, RecursionError):
        expected = None
    if single and isinstance(expected, str):
        expected = [expected]
    if isinstance(expected, list) and all(isinstance(one, str) for one in expected):
        assert parseMessages(text, single) == expected
    else:
        with pytest.raises(BrokenFrame):
            parseMessages(text, single)


@pytest.mark.parametrize(
    "text",
    ["", "[", '["', '["a', '["a"', '["a",', '["a",]', "[1]", "{}", "null", '["a"]x', '"a"', "[[]]"]
    + ["[" * 1_000_000, '["a"' + ',["' * 100_000, '["\n"]', '["\\x"]', "1" * 100_000],
    ids=lambda text: text[:8],
)
def test_hostile(text: str) -> None:
    """
    No depth, no numbers, no half strings.
    """
    with pytest.raises(BrokenFrame):
        parseMessages(text)


@given(st.integers(1000, 4999), anyText)
def test_close(code: int, reason: str) -> None:
    """
    A reason may be any text.
    """
    frame = closeFrame(code, reason)
    frame.encode("utf-8")
    assert frame[0] == "c" and json.loads(frame[1:]) == [code, reason]


@given(anyText)
@example("</script><script>alert(1)</script>")
def test_wrappings(reason: str) -> None:
    """
    In no transport can a text get out of its frame.
    """
    why = Close(3000, reason)
    frame = closeFrame(3000, reason)
    assert xhr.FORMAT.closed(why) == frame.encode("utf-8") + b"\n"
    assert b"\n" not in xhr.FORMAT.closed(why)[:-1]

    event = eventsource.FORMAT.closed(why)
    assert event.startswith(b"data: ") and event.endswith(b"\r\n\r\n")
    inner = event[6:-4]
    assert not set(b"\r\n\0") & set(inner)
    plain = inner.decode("utf-8")
    for code, char in ("%0D", "\r"), ("%0A", "\n"), ("%00", "\0"), ("%25", "%"):
        plain = plain.replace(code, char)
    assert plain == frame

    script = htmlfile.FORMAT.closed(why)
    assert script.count(b"</script>") == 1 and script.endswith(b"\n</script>\r\n")
    call = jsonp.formatFor("call").closed(why)
    assert call.startswith(b"/**/call(") and call.endswith(b");\r\n")
    assert json.loads(call[9:-4].decode("utf-8")) == frame


@pytest.mark.parametrize("form", [xhr.FORMAT, eventsource.FORMAT, htmlfile.FORMAT])
def test_chunked(form: object) -> None:
    """
    A chunk (RFC 9112, 7.1) is the same frame with its length.
    """
    plain = form.closed(Close(3000, "é"))  # type: ignore[attr-defined]
    chunk = form.chunked.closed(Close(3000, "é"))  # type: ignore[attr-defined]
    size, _, rest = chunk.partition(b"\r\n")
    assert int(size, 16) == len(plain) and rest == plain + b"\r\n"
