"""An order service is killed with SIGKILL; replay publishes what it left."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from order_relay.fallback.replay import Replay
from order_relay.fallback.store import Status
from order_relay.fallback.sweep import Sweep
from order_relay.fallback.table import FallbackTable
from order_relay.kafka.producer import KafkaProducer
from tests.support.publish_fakes import Sent
from tests.support.publish_orders import make_orders, order_ids, statuses
from tests.support.publish_ways import publish_settings, read_topic

ROOT = Path(__file__).parents[3]
# By this clock, the leases of the dead process have run out.
LATER = timedelta(minutes=10)


def kill_service(way: str, url: str, topic: str, servers: str, *, after: int) -> None:
    """Run an order service until it has paid ``after`` orders, and kill it; 0: it kills itself."""
    environment = {
        "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "KAFKA_BOOTSTRAP_SERVERS": servers,
        "ORDER_PAID_TOPIC": topic, "DATABASE_URL": url,
    }  # fmt: skip
    with subprocess.Popen(
        [sys.executable, "-m", "tests.support.publish_service", way, *(() if after else ("die",))],
        cwd=ROOT,
        env=os.environ | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as service:
        assert service.stdin is not None
        assert service.stdout is not None
        service.stdin.write(b"10000\n" if after else b"1\n")
        service.stdin.flush()
        paid = 0
        while paid < after and (line := service.stdout.readline()):
            paid += line.startswith(b"paid")
        if after:
            service.kill()
        assert service.wait(60) == -signal.SIGKILL


async def replayed(servers: str, url: str) -> Sweep:
    """Run one sweep of a replay, as a worker on the same database does."""
    store = FallbackTable(url, clock=lambda: datetime.now(UTC) + LATER)
    producer = KafkaProducer(publish_settings(servers, url))
    await producer.start()
    sweep = await Replay(store, producer).run_once()
    await producer.stop()
    await store.close()
    return sweep


async def ledger(url: str) -> tuple[list[int], list[Status]]:
    """The committed orders, and the statuses of the rows."""
    engine = await make_orders(url)
    found = await order_ids(engine), await statuses(engine)
    await engine.dispose()
    return found


def check_events(orders: list[int], records: list[Sent]) -> None:
    """Check that each order has an event, each event an order, and repeats share their id."""
    assert {json.loads(record.value or b"")["orderId"] for record in records} == set(orders)
    assert {record.event_id for record in records} == {f"order-{number}" for number in orders}
    for record in records:
        assert record.event_id == f"order-{json.loads(record.value or b'')['orderId']}"


def test_outbox_killed_between_commit_and_publish(
    cluster: str, topic: str, database_url: str
) -> None:
    """The order and its row survive, nothing is in Kafka; one sweep of a replay publishes it."""
    kill_service("outbox", database_url, topic, cluster, after=0)
    assert asyncio.run(ledger(database_url)) == ([1], [Status.PENDING])
    assert read_topic(cluster, topic) == []
    assert asyncio.run(replayed(cluster, database_url)) == Sweep(published=1)
    assert asyncio.run(ledger(database_url)) == ([1], [Status.PUBLISHED])
    (record,) = read_topic(cluster, topic)
    check_events([1], [record])


@pytest.mark.parametrize("after", [1, 30, 150])
def test_outbox_killed_at_any_moment(
    cluster: str, topic: str, database_url: str, after: int
) -> None:
    """Exactly the committed orders reach Kafka; repeats keep their id."""
    kill_service("outbox", database_url, topic, cluster, after=after)
    orders, rows = asyncio.run(ledger(database_url))
    assert len(orders) >= after
    assert len(rows) == len(orders)
    sweep = asyncio.run(replayed(cluster, database_url))
    assert sweep == Sweep(published=rows.count(Status.PENDING))
    assert Counter(asyncio.run(ledger(database_url))[1]) == {Status.PUBLISHED: len(orders)}
    records = read_topic(cluster, topic)
    check_events(orders, records)
    # Only events published and not yet marked at the kill are there twice.
    assert len(records) - len(orders) <= sweep.published


def test_after_commit_killed_between_commit_and_publish(
    cluster: str, topic: str, database_url: str
) -> None:
    """As documented: the order is committed, and its event is lost."""
    kill_service("after-commit", database_url, topic, cluster, after=0)
    assert asyncio.run(ledger(database_url)) == ([1], [])
    assert asyncio.run(replayed(cluster, database_url)) == Sweep()
    assert read_topic(cluster, topic) == []
