"""One story of paid orders: topics, a database, an order service, workers; and its checks.

async with PublishScene(kafka, tmp_path, database_url) as scene:
    service = scene.service(OUTBOX)
    service.allow(4000)
    ...
    await scene.until_settled()
    (await scene.records()).check_orders(4000)
"""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import sqlalchemy as sa

from order_relay.fallback.sql.engine import make_engine
from order_relay.fallback.sql.schema import fallback_message
from order_relay.fallback.store import Status
from order_relay.settings import Settings
from tests.kafka.scene import SESSION, WorkerScene
from tests.support.child import on_leash
from tests.support.kafka.cluster import RealKafka
from tests.support.orders import order_value
from tests.support.publish_service import order_event_id
from tests.support.stage import Row
from tests.support.waiting import eventually
from tests.support.worker import ROOT, WorkerProcess

LIMIT_SECONDS = 120.0
DELIVERY_TIMEOUT_SECONDS = 3.0
QUICK: Mapping[str, Any] = {
    **SESSION, "fallback_replay_interval_seconds": 0.5, "fallback_backoff_base_seconds": 1,
    "producer_delivery_timeout_ms": round(DELIVERY_TIMEOUT_SECONDS * 1000),
    "producer_request_timeout_ms": 2000, "producer_retry_backoff_ms": 100,
}  # fmt: skip
"""Refusals come quickly and saved rows are soon tried again; by default that takes minutes."""
PATIENT: Mapping[str, Any] = {
    name: Settings.model_fields[name].default
    for name in ("producer_delivery_timeout_ms", "producer_request_timeout_ms")
}
"""For stories without an outage: brokers of a busy machine may take longer than QUICK's 3 s, and
what is refused then and sent again may be in Kafka twice."""


Place: TypeAlias = tuple[int, int | None]
"""Partition and offset of a record; no offset where Kafka does not tell it."""


def place(partition: str, offset: str) -> Place:
    """Parse a printed place."""
    return int(partition), None if offset == "None" else int(offset)


@dataclass(frozen=True, slots=True)
class Saved:
    """A row of the fallback table."""

    id: int
    topic: str
    key: str
    event_id: str
    status: Status
    error: str | None
    token: str | None


class Service:
    """An order service, running from construction on; see ``publish_service``."""

    def __init__(self, directory: Path, way: str, environment: Mapping[str, str]) -> None:
        self.log = directory / f"{way}.log"
        self._output = directory / f"{way}.out"
        with self._output.open("wb") as output, self.log.open("wb") as log:
            self._process = subprocess.Popen(
                on_leash(sys.executable, "-m", "tests.support.publish_service", way),
                cwd=directory,
                env=dict(environment),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=log,
                start_new_session=True,
            )

    def allow(self, last: int) -> None:
        """Let it pay up to this order, without waiting."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{last}\n".encode())
        self._process.stdin.flush()

    async def until_paid(self, count: int) -> None:
        """Wait until it has paid ``count`` orders."""

        def paid() -> bool:
            assert self._process.poll() is None, self._state()
            return len(self.said("paid")) >= count

        await eventually(paid, LIMIT_SECONDS, self._state)

    async def end(self) -> None:
        """Let it end with status 0, and wait."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        await eventually(lambda: self._process.poll() is not None, LIMIT_SECONDS, self._state)
        assert self._process.returncode == 0, self._state()

    def kill9(self) -> None:
        """End it at once; does nothing when it has ended."""
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()

    def said(self, word: str) -> list[list[str]]:
        """The rest of each line that begins with a word."""
        lines = (line.split() for line in self._output.read_text().splitlines())
        return [line[1:] for line in lines if line and line[0] == word]

    def published(self) -> dict[str, Place]:
        """Partition and offset in the senders' results, by event id."""
        return {
            order_event_id(int(number)): place(partition, offset)
            for number, partition, offset in self.said("published")
        }

    def most_copies(self) -> Counter[str]:
        """The most copies of each event in Kafka, once the service has ended.

        One for each send, and one for each other event refused meanwhile (see
        ``Records.check_acknowledged``).
        """
        most: Counter[str] = Counter()
        for word in ("refused", "acknowledged"):
            for event_id, refused_meanwhile in self.said(word):
                most[event_id] += 1 + int(refused_meanwhile)
        return most

    def _state(self) -> str:
        return f"{len(self.said('paid'))} paid; {self.log.read_text()[-3000:]}"


class PublishScene(WorkerScene):
    """A story of paid orders, with a database.

    Args:
        database_url: Of a database with the table.
        dlq_configs: Of the dead-letter topic.
        settings: Of workers and services; they override QUICK.
    """

    def __init__(
        self,
        kafka: RealKafka,
        directory: Path,
        database_url: str,
        *,
        dlq_configs: Mapping[str, str] | None = None,
        **settings: object,
    ) -> None:
        given = {**QUICK, **settings, "database_url": database_url}
        super().__init__(kafka, directory, given, dlq_configs=dlq_configs)
        self.engine = make_engine(database_url)
        self._everything.push_async_callback(self.engine.dispose)

    def service(self, way: str) -> Service:
        """Start an order service."""
        given = {
            "PATH": os.environ.get("PATH", ""), "PYTHONPATH": ROOT, "PYTHONUNBUFFERED": 1,
            **{name.upper(): value for name, value in (self.stage.names | self._settings).items()},
        }  # fmt: skip
        environment = {key: str(value) for key, value in given.items()}
        service = Service(self._directory, way, environment)
        self._everything.callback(service.kill9)
        return service

    @staticmethod
    def replayed(worker: WorkerProcess) -> dict[int, Place]:
        """Partition and offset of the rows that a worker has published, by id; each only once."""
        found: dict[int, Place] = {}
        for line in worker.log_lines("Fallback message published successfully"):
            words = dict(re.findall(r"(\w+)=(\S+)", line))
            assert int(words["id"]) not in found, line
            found[int(words["id"])] = place(words["partition"], words["offset"])
        return found

    async def saved(self) -> list[Saved]:
        """Every row of the table, by id."""
        async with self.engine.connect() as connection:
            rows = await connection.execute(
                sa.select(fallback_message).order_by(fallback_message.c.id)
            )
            return [
                Saved(
                    row.id,
                    row.topic,
                    row.message_key,
                    dict(json.loads(row.headers))["event-id"],
                    Status(row.status),
                    row.error_message,
                    row.lease_token,
                )
                for row in rows
            ]

    async def counts(self) -> dict[str, int]:
        """How many rows there are of each status."""
        async with self.engine.connect() as connection:
            counted = await connection.execute(
                sa.text("SELECT status, COUNT(*) FROM kafka_fallback_message GROUP BY status")
            )
            return {status: count for status, count in counted}  # noqa: C416 - typed

    async def until_counted(self, status: Status, count: int) -> None:
        """Wait until there are ``count`` rows of a status."""

        async def counted() -> bool:
            return (await self.counts()).get(status, 0) >= count

        await eventually(counted, LIMIT_SECONDS, f"{count} rows {status}")

    async def until_settled(self) -> None:
        """Wait until every row is PUBLISHED; there must be some, and none may be given up."""
        counts: dict[str, int] = {}

        async def settled() -> bool:
            counts.clear()
            counts.update(await self.counts())
            if "FAILED" in counts:
                failed = [row for row in await self.saved() if row.status == Status.FAILED]
                raise AssertionError(f"{len(failed)} rows were given up: {failed[:3]}")
            return counts.keys() == {"PUBLISHED"}

        await eventually(settled, LIMIT_SECONDS, lambda: counts)

    async def records(self) -> "Records":
        """All records of the topic now, read by another client."""
        return Records(await self.stage.records())


class Records:
    """The orders' records in Kafka, by event id, in order of partition and offset."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows
        self.by_id: dict[str, list[Row]] = {}
        for row in rows:
            self.by_id.setdefault(row.text("event-id") or "", []).append(row)

    @property
    def copies(self) -> Counter[str]:
        """The number of records of each event that has more than one."""
        return Counter({one: len(rows) for one, rows in self.by_id.items() if len(rows) > 1})

    def check_orders(self, orders: int) -> None:
        """Exactly the orders from 1 to this one are there, complete and with their ids."""
        expected = {order_event_id(number): order_value(number) for number in range(1, orders + 1)}
        assert self.by_id.keys() == expected.keys()
        for event_id, rows in self.by_id.items():
            assert {row.value for row in rows} == {expected[event_id]}
            assert len({(row.key, row.partition) for row in rows}) == 1

    def check_acknowledged(
        self, places: Mapping[str, Place], most_copies: Callable[[str], int]
    ) -> None:
        """Acknowledged records are at the place in the answer, and only there.

        But after a refusal of a record that may be in Kafka, librdkafka starts a new sequence and
        resends in it all records in flight, which Kafka cannot recognize as duplicates. See
        https://github.com/confluentinc/librdkafka/issues/4953 (a comment of the maintainer's).

        Args:
            places: The places in the senders' results, by event id.
            most_copies: The most copies of an event: one, and one more for each record that was
                refused while it was in flight.
        """
        for event_id, told in places.items():
            self.check_place(event_id, told)
            if (copies := len(self.by_id[event_id])) > 1:
                assert copies <= most_copies(event_id), self.by_id[event_id]

    def check_place(self, event_id: str, told: Place) -> None:
        """The last copy is at the place in the sender's result."""
        last = self.by_id[event_id][-1]
        # Kafka may confirm a duplicate without its offset.
        assert told in ((last.partition, last.offset), (last.partition, None)), last

    def check_order(self, saved: Collection[Saved], *, first: bool) -> None:
        """Rows of one key went to Kafka in the order of their ids.

        Args:
            saved: The rows.
            first: Whether to compare the first copies of the events; else the last ones, as
                unanswered attempts may leave earlier copies.
        """
        by_key: dict[str, list[int]] = {}
        for row in sorted(saved, key=lambda row: row.id):
            found = self.by_id[row.event_id]
            by_key.setdefault(row.key, []).append((found[0] if first else found[-1]).offset)
        assert {key for key, offsets in by_key.items() if offsets != sorted(offsets)} == set()
