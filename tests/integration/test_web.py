"""The worker's web server over real HTTP."""

import socket
from collections.abc import AsyncIterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from order_relay.monitoring.metrics import Metrics
from order_relay.web.access import Access
from order_relay.web.server import WebServer
from tests.support.http_request import Answer, ask
from tests.support.kafka.ports import LOOPBACK, free_ports
from tests.support.standing_health import StandingDeliveries, consumer_pages, standing_health


class Served:
    """A web server and its state."""

    def __init__(self) -> None:
        self.now = 0.0
        self.deliveries = StandingDeliveries()
        self.metrics = Metrics()
        self.health = standing_health(self.deliveries, clock=lambda: self.now)
        self.port = free_ports(1)[0]
        self.server = WebServer(
            LOOPBACK,
            self.port,
            self.metrics.registry,
            {"order_logging": consumer_pages(self.health)},
            access=Access("s3cret", ["relay.example.org"]),
        )

    async def ask(self, path: str, method: str = "GET", **headers: str) -> Answer:
        """Make a request."""
        return await ask(f"http://{LOOPBACK}:{self.port}{path}", method, headers=headers)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    """A web server that serves."""
    one = Served()
    await one.server.start()
    yield one
    await one.server.stop()


async def test_metrics_are_served_in_prometheus_format(served: Served) -> None:
    """The page has counters and gauges; a unit test checks the catalogue."""
    consumer = served.metrics.of("order_logging")
    consumer.watch(in_flight=lambda: 3)
    consumer.attempted("retryable", "5xx", 0.2)
    answer = await served.ask("/metrics")
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain")
    values = {
        (one.name, *sorted(one.labels.values())): one.value
        for family in text_string_to_metric_families(answer.text)
        for one in family.samples
    }
    assert values["order_relay_in_flight", "order_logging"] == 3
    attempts = "order_relay_delivery_attempts_total"
    assert values[attempts, "5xx", "order_logging", "retryable"] == 1


async def test_health_is_a_status_with_its_reasons(served: Served) -> None:
    """200 or 503, with readiness or liveness as JSON."""
    answer = await served.ask("/health/ready")
    assert answer.headers["Content-Type"].split(";")[0] == "application/json"
    assert (answer.status, answer.json["producer_connected"]) == (503, False)
    served.health.assigned_partitions = 3
    served.health.kafka_seen_at = served.now
    assert (await served.ask("/health/ready")).status == 200
    served.now = 10_000.0
    assert (await served.ask("/health/live")).status == 200
    served.deliveries.queued = 4
    assert (await served.ask("/health/live")).status == 200
    served.now = 20_000.0
    answer = await served.ask("/health/live")
    assert (answer.status, answer.json["work_waiting"]) == (503, 4)


async def test_other_paths_and_methods_are_refused(served: Served) -> None:
    """Unknown paths get 404, and other methods 405."""
    assert (await served.ask("/table/")).status == 404
    assert (await served.ask("/metrics", "POST")).status == 405


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"])
async def test_pages_are_not_read_under_a_foreign_name(served: Served, method: str) -> None:
    """DNS rebinding must not read pages: foreign host names get 403, except for health checks."""

    async def status_under(host: str, path: str, **headers: str) -> int:
        answer = await served.ask(path, method, Host=host, **headers)
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "no-store"
        return answer.status

    for path in ("/metrics", "/orders/1", "/nothing"):
        assert await status_under("evil.example", path) == 403
        assert await status_under("evil.example:6066", path) == 403
        assert await status_under("127.0.0.1.evil.example", path) == 403
    assert await status_under("evil.example", "/health/live") in (200, 405)
    for host in (
        "localhost:6066", "127.0.0.1", "[::1]:6066", "10.0.0.7:6066", "worker", "",
        "relay.shop.svc.cluster.local", "Relay.Example.ORG.:443",
    ):  # fmt: skip
        assert await status_under(host, "/metrics") in (200, 405)
    token = {"Authorization": "Bearer s3cret"}
    assert await status_under("proxy.example", "/metrics", **token) in (200, 405)


async def test_stopping_frees_the_port() -> None:
    """After the stop the port can be bound again; a second stop does nothing."""
    one = Served()
    await one.server.start()
    await one.server.stop()
    await one.server.stop()
    with socket.create_server((LOOPBACK, one.port)):
        pass
