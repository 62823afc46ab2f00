"""
The public names stay where they are, and are loaded on first use.
"""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import twsessions

PUBLIC = [
    "CookiePolicy",
    "Session",
    "SessionResource",
    "SessionSite",
    "registerComponent",
    "storeFromURL",
]


def test_theNames() -> None:
    """
    These are public, and no others.
    """
    assert sorted(twsessions.__all__) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_exists(name: str) -> None:
    """
    The name is there, is listed, and is what its home module calls so.
    """
    value = getattr(twsessions, name)
    assert name in dir(twsessions)
    assert value.__name__ == name
    assert value is getattr(import_module(value.__module__), name)


@pytest.mark.parametrize("name", PUBLIC)
def test_loadedOnFirstUse(name: str) -> None:
    """
    Before the first use nothing of ours is loaded; after it the name is an
    ordinary global.
    """
    program = (
        "import sys, twsessions\n"
        "loaded = [m for m in sys.modules if m.startswith('twsessions.')]\n"
        "assert not loaded, loaded\n"
        f"assert {name!r} not in vars(twsessions)\n"
        f"from twsessions import {name}\n"
        f"assert vars(twsessions)[{name!r}] is {name}\n"
        "assert 'twisted.internet.reactor' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(twsessions.__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_star() -> None:
    """
    C{from twsessions import *} brings the public names.
    """
    namespace: dict[str, object] = {}
    exec("from twsessions import *", namespace)
    assert namespace.keys() - {"__builtins__"} == set(PUBLIC)


def test_unknown() -> None:
    """
    A name that is not ours raises L{AttributeError}, naming it.
    """
    name = "sessionsite"
    with pytest.raises(AttributeError, match=name):
        getattr(twsessions, name)
