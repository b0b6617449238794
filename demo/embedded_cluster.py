"""librdkafka's mock cluster: brokers that speak the real protocol inside this process."""

from __future__ import annotations

from collections.abc import Sequence

from demo.errors import CannotRun
from demo.mock_brokers import MockBrokers

BROKERS = 3
PARTITIONS = 4
LIMITS = (
    f"Embedded Kafka: {BROKERS} brokers in memory, for trying out and for tests only; "
    "nothing is kept when it ends."
)
# Each partition keeps 5 MiB or 100,000 records and then drops the oldest, read or not. At 4
# partitions a topic and a few hundred bytes an order, this many waiting are safe.
SAFE_BACKLOG = 20_000


class EmbeddedCluster:
    """Holds the cluster open from ``start`` to ``stop``. It makes topics on first use.

    Attributes:
        is_down: Whether the brokers cannot be reached.
    """

    def __init__(self, brokers: int = BROKERS) -> None:
        self._number = brokers
        self._brokers: MockBrokers | None = None
        self.is_down = False

    def start(self, topics: Sequence[str] = ()) -> str:
        """Start the brokers and make the topics, 4 partitions each. Blocks for a moment.

        Returns:
            The bootstrap servers.

        Raises:
            CannotRun: This librdkafka has no mock cluster, or it does not start.
        """
        try:
            self._brokers = MockBrokers(self._number)
            for topic in topics:
                self._brokers.make_topic(topic, PARTITIONS)
        except OSError as error:
            self.stop()
            raise CannotRun(
                f"the embedded Kafka cluster does not start ({error}): "
                "install confluent-kafka from PyPI's wheel, which has one in it"
            ) from error
        return self._brokers.servers

    def down(self) -> None:
        """Let the brokers be out of reach; what they hold stays."""
        if self._brokers is not None:
            self._brokers.down()
            self.is_down = True

    def up(self) -> None:
        """Let the brokers be reached again. May be called twice."""
        if self._brokers is not None and self.is_down:
            self._brokers.up()
            self.is_down = False

    def stop(self) -> None:
        """Let the cluster and all that is in it go. May be called twice."""
        if self._brokers is not None:
            self._brokers.close()
            self._brokers = None
