"""What the processes of one test run share: a folder, and the real Kafka cluster.

With pytest-xdist tests run in several processes; one more starts first, and owns what is shared.
"""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict

from tests.support.kafka.cluster import RealKafka
from tests.support.kafka.shared import Address, ClusterServer, connect
from tests.support.secure_kafka import Secrets


class Shared(TypedDict):
    """Where the shared things are, in plain values that can be handed to another process."""

    folder: str
    cluster: Address


class FirstProcess:
    """What the first process of the run owns, from construction to ``close``."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="order-relay-tests-")
        folder = Path(self._folder.name)
        self._server = ClusterServer(lambda: Secrets(folder).make().cluster())
        self.shared: Shared = {"folder": self._folder.name, "cluster": self._server.address}

    def close(self) -> None:
        """End the cluster, and remove the folder."""
        self._server.close()
        self._folder.cleanup()


class TestRun:
    """The run as a process that runs tests sees it.

    Attributes:
        secrets: Keys and certificates of the cluster, once they were asked for.
    """

    __test__ = False

    def __init__(self, shared: Shared) -> None:
        self.secrets = Secrets(Path(shared["folder"]))
        self._lock = Path(shared["folder"]) / "brokers.lock"
        self._address = shared["cluster"]

    def cluster(self) -> RealKafka:
        """The run's cluster; it may not have been started."""
        return connect(self._address)

    @contextmanager
    def brokers(self, *, alone: bool = False) -> Iterator[None]:
        """Share the brokers with other tests; if ``alone``, have them alone, to harm them.

        Waits until other tests no longer use them.
        """
        with self._lock.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
            yield
