"""
Tests for L{twsessions.web.tokens}.
"""

from __future__ import annotations

import subprocess
import sys

from twsessions.web.tokens import Tokens

_FORK = """
import os, sys
from twsessions.web.tokens import Tokens
tokens = Tokens(os.urandom)
tokens.next()
mine, its = os.pipe()
if not os.fork():
    os.write(its, tokens.next())
    os._exit(0)
sys.stdout.buffer.write(tokens.next() + os.read(mine, 16))
"""


def test_noneIsThereTwice() -> None:
    """
    And not each costs entropy.
    """
    asked: list[int] = []
    tokens = Tokens(lambda count: asked.append(count) or bytes(count))  # type: ignore[func-returns-value]
    some = [tokens.next() for _ in range(1000)]
    assert len(set(some)) == 1000 and {len(token) for token in some} == {16}
    assert asked == [12]


def test_aForkedProcessHasItsOwn() -> None:
    """
    A store would take its changes for the parent's, sent again.
    """
    said = subprocess.run([sys.executable, "-c", _FORK], stdout=subprocess.PIPE, check=True).stdout
    mine, its = said[:16], said[16:]
    assert len(its) == 16 and mine[:12] != its[:12]
