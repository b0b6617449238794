"""The figures of a consumer that has just started."""

import time
from typing import Any, cast

from prometheus_client import CollectorRegistry

from order_relay.delivery.breaker import Breaker
from order_relay.kafka.consumer import RelayConsumer
from order_relay.monitoring.metrics import Metrics
from order_relay.monitoring.stats import Stats
from order_relay.settings import load_settings
from tests.support.targets import standing_dispatcher


class NoConsumer:
    """A consumer without partitions."""

    group_problem = ""

    def committed_offsets(self) -> dict[Any, int | None]:
        """Return none."""
        return {}

    positions = committed_offsets


def all_figures() -> dict[str, Any]:
    """Return what ``/stats`` has."""
    stats = Stats(
        Metrics(CollectorRegistry()).of("order_logging"),
        load_settings(),
        cast(RelayConsumer, NoConsumer()),
        standing_dispatcher(Breaker(20, 5.0, time.monotonic)),
    )
    return stats.figures()
