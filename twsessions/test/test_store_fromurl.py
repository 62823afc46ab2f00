"""
Tests for L{twsessions.stores.fromurl}.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import pytest
from twisted.internet.task import Clock

from twsessions.errors import NotSupported
from twsessions.interfaces import ISessionStore
from twsessions.stores import fromurl
from twsessions.stores.fromurl import checkURL, storeFromURL
from twsessions.stores.sqlite import SQLiteStore


def sqliteStore(url: str) -> SQLiteStore:
    store = storeFromURL(Clock(), url)
    assert isinstance(store, SQLiteStore)
    return store


def test_memory() -> None:
    assert ISessionStore.providedBy(storeFromURL(Clock(), "memory:"))


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///sessions.db", "sessions.db"),
        ("sqlite:///var/sessions.db", "var/sessions.db"),
        ("SQLite:////var/lib/x.db", "/var/lib/x.db"),
        ("sqlite:////a%20b/%C3%A9%23%3F.db?synchronous=full", "/a b/é#?.db"),
        ("sqlite:///a+b.db?", "a+b.db"),
    ],
)
def test_sqlitePath(url: str, path: str) -> None:
    assert sqliteStore(url).path == os.path.abspath(path)


def test_nothingIsOpened(tmp_path: Path) -> None:
    sqliteStore(f"sqlite:///{tmp_path}/x.db")
    assert list(tmp_path.iterdir()) == []


def test_relativePathHoldsAfterAChangeOfDirectory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = sqliteStore("sqlite:///x.db")
    monkeypatch.chdir("/")
    assert store.path == str(tmp_path / "x.db")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "begins with one of memory, sqlite"),
        ("memory", "begins with"),
        ("mysql://me:hunter2@h/db", "begins with"),
        ("hunter2:x", "begins with"),
        ("memory:hunter2", "nothing more"),
        ("memory://", "nothing more"),
        ("sqlite:x.db", "sqlite:///relative/path"),
        ("sqlite:/x.db", "sqlite:////absolute/path"),
        ("sqlite://me:hunter2@host/x.db", "without a host"),
        ("sqlite://", "without a host"),
        ("sqlite:///", "path of a file"),
        ("sqlite:////", "path of a file"),
        ("sqlite:////var/", "path of a file"),
        ("sqlite:///?synchronous=full", "path of a file"),
        ("sqlite:///a%00b", "path of a file"),
        ("sqlite:///a%FFb", "UTF-8"),
        ("sqlite:///a\ud800b", "UTF-8"),
        ("sqlite:///x.db#hunter2", "%23"),
        ("sqlite:///x.db?password=hunter2", "one option"),
        ("sqlite:///x.db?synchronous=hunter2", "one option"),
        ("sqlite:///x.db?synchronous=", "one option"),
        ("sqlite:///x.db?synchronous", "one option"),
        ("sqlite:///x.db?synchronous=full&hunter2", "one option"),
        ("sqlite:///x.db?synchronous=full&synchronous=normal", "one option"),
    ],
)
def test_refused(url: str, says: str) -> None:
    for attempt in lambda: storeFromURL(Clock(), url), lambda: checkURL(url):
        with pytest.raises(ValueError) as caught:
            attempt()
        assert says in str(caught.value)
        assert "hunter2" not in str(caught.value)
        assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "scheme",
    ["redis", "rediss", "redis+sentinel", "redis+cluster", "postgresql", "memcached"],
)
def test_missingDriver(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> NoReturn:
        raise ModuleNotFoundError("No module named 'driver'", name="driver")

    monkeypatch.setattr(fromurl, "import_module", missing)
    with pytest.raises(NotSupported) as caught:
        storeFromURL(Clock(), f"{scheme}://me:hunter2@host/0")
    assert "pip install 'twsessions[" in str(caught.value)
    assert "hunter2" not in str(caught.value)
