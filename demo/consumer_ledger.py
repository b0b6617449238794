"""The ledger of a consumer beside order_logging: every record of its topic is accounted for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from confluent_kafka import Message


@dataclass(frozen=True, slots=True)
class ConsumerBalance:
    """The figures of a consumer at one moment; all but ``received`` count records.

    Attributes:
        name: The consumer's name.
        topic: The topic that it reads.
        published: Records in that topic.
        handled: Its handler returned, says the worker.
        not_handled_again: Duplicates, and redriven letters of other consumers, says the worker.
        dead_lettered: In its dead-letter topic.
        repeated_dead_letters: Dead letters beyond the first for a record.
        received: Events that its sample service answered 2xx; ``None`` if it has no such service.
    """

    name: str
    topic: str
    published: int
    handled: int
    not_handled_again: int
    dead_lettered: int
    repeated_dead_letters: int
    received: int | None

    @property
    def finished(self) -> int:
        """Records that are accounted for."""
        return self.handled + self.not_handled_again + self.dead_lettered

    @property
    def open(self) -> int:
        """Records that are not; 0 while more are finished than this has heard of."""
        return max(self.published - self.finished, 0)

    @property
    def goes_wrong(self) -> bool:
        """More is finished than there was, or than arrived: no waiting would mend that."""
        return self.finished > self.published or (
            self.received is not None and self.received < self.handled
        )

    @property
    def closes(self) -> bool:
        """Every record is accounted for, and what was handled has arrived."""
        return not self.open and not self.goes_wrong


class ConsumerLedger:
    """Counts what Kafka, the consumer's sample service and the worker tell.

    Attributes:
        name: The consumer's name.
        has_service: Whether it calls a sample service.
    """

    def __init__(self, name: str, topic: str, *, has_service: bool = False) -> None:
        self.name = name
        self.has_service = has_service
        self._topic = topic
        self._published = 0
        self._letters = 0
        self._dead_lettered: set[object] = set()
        self._received: set[str] = set()
        self._outcomes: Mapping[str, int] = {}

    def published(self, record: Message) -> None:
        """A record was read from its topic."""
        self._published += 1

    def dead_lettered(self, letter: Message) -> None:
        """A record was read from its dead-letter topic."""
        headers = dict(letter.headers() or [])
        position = [headers.get(f"kafka_dlt-original-{part}") for part in ("partition", "offset")]
        self._letters += 1
        self._dead_lettered.add(tuple(position))

    def received(self, event_id: str) -> None:
        """Its sample service answered 2xx."""
        self._received.add(event_id)

    def told(self, outcomes: Mapping[str, int]) -> None:
        """The worker's ``/stats`` tell how many deliveries ended how."""
        self._outcomes = outcomes

    def balance(self) -> ConsumerBalance:
        """Return the figures as they are now."""
        return ConsumerBalance(
            name=self.name,
            topic=self._topic,
            published=self._published,
            handled=self._outcomes.get("delivered", 0),
            # What was abandoned comes again: no end.
            not_handled_again=sum(self._outcomes.get(name, 0) for name in ("duplicate", "skipped")),
            dead_lettered=len(self._dead_lettered),
            repeated_dead_letters=self._letters - len(self._dead_lettered),
            received=len(self._received) if self.has_service else None,
        )
