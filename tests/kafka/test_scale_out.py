"""Several workers share a group's partitions, do no work twice, and their metrics add up."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.kafka.publish_scene import PATIENT, PublishScene
from tests.kafka.scene import Scene
from tests.kafka.test_publish_replay import ROWS, save_rows
from tests.support.kafka.cluster import RealKafka
from tests.support.waiting import eventually
from tests.support.worker import WorkerProcess

PARTITIONS = 6
KEYS = 600
ORDERS = 6_000
MAX_ROUNDS = 12
LIMIT_SECONDS = 120.0


async def test_workers_share_the_partitions(kafka: RealKafka, tmp_path: Path) -> None:
    """Each delivers its share; every order arrives once; the metrics add up.

    Each of three workers has two of six partitions.
    """
    async with Scene(kafka, tmp_path, partitions=PARTITIONS, keys=KEYS) as scene:
        workers = [scene.worker(name) for name in "abc"]
        await until_shared(workers, PARTITIONS)
        scene.load.publish(ORDERS)
        await scene.settle_and_check()
        assert len(scene.accepted_orders) == ORDERS
        scene.assert_nothing_repeated()
        assert scene.overlaps() == []

        counted = await counted_outcomes(workers, ORDERS)
        assert counted == [{"delivered": scene.sent_by(worker.name)} for worker in workers]
        assert all(counted)

        async def caught_up() -> bool:
            lags = [lag(await worker.metrics(), scene.stage.topic) for worker in workers]
            # Only the owner reports a partition's lag.
            assert sorted(p for one in lags for p in one) == list(range(PARTITIONS))
            return sum(sum(one.values()) for one in lags) == 0

        await eventually(caught_up, LIMIT_SECONDS, "lag 0 over all workers")


@pytest.mark.parametrize(("database", "names"), [("sqlite_url", "ab"), ("postgres_url", "abc")])
async def test_workers_replay_one_table(
    kafka: RealKafka, tmp_path: Path, request: pytest.FixtureRequest, database: str, names: str
) -> None:
    """Each publishes rows, no row twice, each key in order; every order is delivered once."""
    url: str = request.getfixturevalue(database)
    async with PublishScene(kafka, tmp_path, url, **PATIENT) as scene:
        workers = [scene.worker(name) for name in names]
        await until_shared(workers, 3)
        saved, replayed = 0, [0]
        # The others may publish all rows of a round before the last one sweeps.
        while min(replayed) == 0 and saved < MAX_ROUNDS * ROWS:
            await save_rows(scene, saved + 1)
            saved += ROWS
            await scene.until_settled()
            replayed = [len(scene.replayed(worker)) for worker in workers]
        records = await scene.records()
        records.check_orders(saved)
        assert records.copies == {}
        records.check_order(await scene.saved(), first=True)

        await eventually(lambda: len(scene.sink.accepted) >= saved, LIMIT_SECONDS)
        assert set(Counter(scene.sink.accepted_keys).values()) == {1}
        replayed = [len(scene.replayed(worker)) for worker in workers]
        assert sum(replayed) == saved
        assert min(replayed) > 0
        name = 'order_relay_fallback_replayed_total{result="published"}'
        assert [(await worker.metrics())[name] for worker in workers] == replayed
        counted = await counted_outcomes(workers, saved)
        assert sum(counted, Counter()) == {"delivered": saved}


async def until_shared(workers: list[WorkerProcess], partitions: int) -> None:
    """Wait until every partition has an owner, and no worker two more than another."""
    shares: list[float] = []

    async def shared() -> bool:
        figures = [await worker.metrics() for worker in workers]
        shares[:] = [one.get("order_relay_assigned_partitions", 0) for one in figures]
        return sum(shares) == partitions and max(shares) - min(shares) <= 1

    await eventually(
        shared,
        LIMIT_SECONDS,
        lambda: {"shares": shares, "logs": [worker.last_words() for worker in workers]},
    )


async def counted_outcomes(workers: list[WorkerProcess], records: int) -> list[Counter[str]]:
    """Each worker's outcomes, once they have counted all records."""
    counted: list[Counter[str]] = []

    async def all_counted() -> bool:
        counted[:] = [outcomes(await worker.metrics()) for worker in workers]
        return sum(one.total() for one in counted) >= records

    await eventually(all_counted, LIMIT_SECONDS, lambda: counted)
    return counted


def outcomes(metrics: Mapping[str, float]) -> Counter[str]:
    """How many records a worker has finished, by outcome."""
    found: Counter[str] = Counter()
    for name, value in metrics.items():
        if match := re.fullmatch(r'order_relay_deliveries_total{outcome="(\w+)"}', name):
            found[match[1]] = int(value)
    return +found


def lag(metrics: Mapping[str, float], topic: str) -> dict[int, float]:
    """The lag that a worker reports, by partition of a topic."""
    pattern = rf'order_relay_consumer_lag{{partition="(\d+)",topic="{re.escape(topic)}"}}'
    return {
        int(match[1]): value
        for name, value in metrics.items()
        if (match := re.fullmatch(pattern, name))
    }
