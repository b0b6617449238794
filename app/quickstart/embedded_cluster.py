"""librdkafka's mock cluster: brokers that speak the real protocol inside this process."""

from __future__ import annotations

import time
from collections.abc import Sequence

from confluent_kafka import KafkaException, Producer

from app.quickstart.errors import CannotRun

BROKERS = 3
LIMITS = (
    f"Embedded Kafka: {BROKERS} brokers in memory, for trying out and for tests only; "
    "nothing is kept when it ends."
)
# Each partition keeps 5 MiB or 100,000 records and then drops the oldest, read or not. At 4
# partitions a topic and a few hundred bytes an order, this many waiting are safe.
SAFE_BACKLOG = 20_000
_START_SECONDS = 10.0


class EmbeddedCluster:
    """Holds the cluster open from ``start`` to ``stop``. It makes topics on first use."""

    def __init__(self, brokers: int = BROKERS) -> None:
        self._brokers = brokers
        self._handle: Producer | None = None

    def start(self, topics: Sequence[str] = ()) -> str:
        """Start the brokers and make the topics, 4 partitions each. Blocks for a moment.

        Returns:
            The bootstrap servers.

        Raises:
            CannotRun: This librdkafka has no mock cluster, or it does not come up.
        """
        try:
            # The log would go to stderr, over the live view; what matters comes as an exception.
            self._handle = Producer({"test.mock.num.brokers": self._brokers, "log_level": 0})
        except KafkaException as error:
            raise CannotRun(
                "the embedded Kafka cluster does not start: the installed confluent-kafka has no "
                f"mock cluster in it ({error.args[0].str()}); install it from PyPI's wheel"
            ) from error
        try:
            brokers = self._handle.list_topics(timeout=_START_SECONDS).brokers.values()
            for topic in topics:
                self._make(topic)
        except KafkaException as error:
            self.stop()
            raise CannotRun(
                f"the embedded Kafka cluster does not answer: {error.args[0].str()}"
            ) from error
        return ",".join(f"{broker.host}:{broker.port}" for broker in brokers)

    def stop(self) -> None:
        """Let the cluster and all that is in it go. May be called twice."""
        self._handle = None

    def _make(self, topic: str) -> None:
        # Asking for a topic makes it; the first answer may come before it is there.
        assert self._handle is not None  # noqa: S101 - start() has just set it
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            found = self._handle.list_topics(topic, timeout=_START_SECONDS).topics[topic]
            if found.error is None and found.partitions:
                return
            time.sleep(0.05)
        raise CannotRun(f"the embedded Kafka cluster does not make topic {topic}")
