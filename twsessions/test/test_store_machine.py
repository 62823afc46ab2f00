"""
The stores that can answer at once, against the model.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

from twsessions.stores.memory import MemoryStore
from twsessions.test.storemachine import machineFor

TestMemoryMachine = machineFor(MemoryStore).TestCase
TestMemoryMachine.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
