"""
The stores that can answer at once, against the model.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from twsessions.interfaces import ISessionStore
from twsessions.stores._threads import InlineWorker
from twsessions.stores.memory import MemoryStore
from twsessions.stores.sqlite import SQLiteStore
from twsessions.test.storemachine import machineFor

SETTINGS = settings(
    max_examples=100,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

TestMemoryMachine = machineFor(MemoryStore).TestCase
TestMemoryMachine.settings = SETTINGS


@pytest.fixture
def directory() -> Iterator[Path]:
    # In memory where there is such a place: hundreds of databases are made.
    shm = Path("/dev/shm")
    path = tempfile.mkdtemp(dir=shm if shm.is_dir() else None)
    yield Path(path)
    shutil.rmtree(path)


def test_sqliteMachine(directory: Path) -> None:
    """
    In a file, closed and opened again at any moment: nothing is only in memory.
    """

    def opened(path: Path, now: Callable[[], float]) -> SQLiteStore:
        return SQLiteStore(str(path), now, InlineWorker(), InlineWorker())

    def makeStore(now: Callable[[], float]) -> ISessionStore:
        place = tempfile.mkdtemp(dir=directory)
        store = opened(Path(place, "sessions.db"), now)
        places[store] = Path(place)
        return store

    def reopen(store: ISessionStore, now: Callable[[], float]) -> ISessionStore:
        again = opened(places[store] / "sessions.db", now)
        places[again] = places.pop(store)
        return again

    places: dict[ISessionStore, Path] = {}
    machine = machineFor(makeStore, reopen)
    run_state_machine_as_test(machine, settings=settings(SETTINGS, max_examples=50))
