"""Producers that answer as told, and a clock to set, for tests of publishing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from order_relay.errors import KafkaUnavailable, PublishRefused
from order_relay.fallback.store import NewMessage, Outcome, Status
from order_relay.kafka.producer import Acknowledged, KafkaProducer
from order_relay.model.headers import Header
from tests.support.virtual_time import VirtualTimeLoop

SHORT_SECONDS = 0.3
START = datetime(2025, 12, 19, 10, 30, tzinfo=UTC)


class Clock:
    """A clock that stands until it is moved; with a loop's time it runs along."""

    def __init__(self, follows: Callable[[], float] | None = None) -> None:
        self._follows = follows
        self._ahead = timedelta()

    def __call__(self) -> datetime:
        passed = timedelta(seconds=self._follows()) if self._follows else timedelta()
        return START + passed + self._ahead

    def advance(self, seconds: float) -> None:
        """Go forward."""
        self._ahead += timedelta(seconds=seconds)


@dataclass(frozen=True, slots=True)
class Sent:
    """A record that the producer was given."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: tuple[Header, ...]
    partition: int | None

    @property
    def event_id(self) -> str:
        """The last event id."""
        return (dict(self.headers).get("event-id") or b"").decode()


def _set_event() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


@dataclass
class FakeProducer(KafkaProducer):
    """A producer that answers as told.

    Attributes:
        sent: Every record it was given, in this order.
        acknowledged: Those that it acknowledged, in the order of the acknowledgements.
        refuse: The error for a record, or None to acknowledge it.
        latency_seconds: How long an answer takes.
        answers: Cleared, nothing is answered until it is set again.
        reachable: Whether brokers answer a ping.
        pings: How often brokers were pinged.
        most_at_once: The most records that waited for an answer at one time.
    """

    sent: list[Sent] = field(default_factory=list)
    acknowledged: list[Sent] = field(default_factory=list)
    refuse: Callable[[Sent], Exception | None] = lambda _: None
    latency_seconds: float = 0.0
    answers: asyncio.Event = field(default_factory=_set_event)
    reachable: bool = True
    pings: int = 0
    most_at_once: int = 0
    _waiting: int = 0

    async def send(
        self,
        topic: str,
        *,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[Header] = (),
        partition: int | None = None,
    ) -> Acknowledged:
        record = Sent(topic, key, value, tuple(headers), partition)
        self.sent.append(record)
        self._waiting += 1
        self.most_at_once = max(self.most_at_once, self._waiting)
        try:
            await asyncio.sleep(self.latency_seconds)
            await self.answers.wait()
        finally:
            self._waiting -= 1
        if (error := self.refuse(record)) is not None:
            raise error
        self.acknowledged.append(record)
        return Acknowledged(topic, partition or 0, len(self.acknowledged) - 1)

    def refuse_all(self) -> None:
        """Refuse what comes from now on, as after a time-out."""
        self.refuse = lambda sent: PublishRefused(
            sent.topic, "Local: Message timed out", "_MSG_TIMED_OUT"
        )

    async def ping(self, timeout_seconds: float = 5.0) -> None:
        self.pings += 1
        await asyncio.sleep(0)
        if not self.reachable:
            raise KafkaUnavailable("broker:9092", "no answer")


class ImpatientProducer(KafkaProducer):
    """The product's, with a shorter wait before a broker counts as away.

    Attributes:
        patience_seconds: The longest wait for a broker's answer.
    """

    patience_seconds = 30.0

    async def ping(self, timeout_seconds: float = 5.0) -> None:
        """See ``KafkaProducer.ping``."""
        await super().ping(min(timeout_seconds, self.patience_seconds))


def refusal(code: str = "NOT_ENOUGH_REPLICAS", topic: str = "orders") -> PublishRefused:
    """Kafka's error: by default a temporary one."""
    return PublishRefused(topic, f"Broker: {code}", code)


def message(
    payload: bytes | None = b"{}", key: bytes | None = b"1", topic: str = "orders", **fields: object
) -> NewMessage:
    """A message to save."""
    return NewMessage(topic, key, payload, **fields)  # type: ignore[arg-type]


def acked(row_id: int) -> Outcome:
    """Kafka has acknowledged the row."""
    return Outcome(row_id, Status.PUBLISHED)


def retried(row_id: int, refusals: int, later: datetime, why: str) -> Outcome:
    """Kafka refused the row; it is due again later."""
    return Outcome(row_id, Status.PENDING, refusals, later, why)


def gave_up(row_id: int, refusals: int, why: str) -> Outcome:
    """Kafka refused the row finally."""
    return Outcome(row_id, Status.FAILED, refusals, None, why)


def forgive() -> None:
    """In virtual time: accept the errors in which tasks have ended until now."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    loop.failures.clear()
