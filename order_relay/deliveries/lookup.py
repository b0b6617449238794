"""Asking what became of an order: here, or at whichever worker has its partition."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import quote

import aiohttp
from yarl import URL

from order_relay.deliveries.entries import Entry, entry_key
from order_relay.deliveries.table import DeliveriesTable
from order_relay.delivery.outcome import FailureState
from order_relay.errors import DatabaseUnavailable, InvalidEvent, KafkaUnavailable
from order_relay.fallback.store import FallbackRow
from order_relay.model.events import ORDER_PAID, Events, paid_at_of
from order_relay.model.order_paid import OrderId
from order_relay.model.record import Record

# Says who asks, and that the one who is asked is to answer for itself alone.
ROUTED_HEADER = "X-Order-Relay-Routed-From"
# Who is asked, and who has which partition, as the one who asks sees it.
VIEW_HEADER = "X-Order-Relay-View"
ASK_SECONDS = 3.0
LOOK_SECONDS = 2.0
# In an answer: the order may be among so many records of its partition.
UNREAD = "unread"
# An entry has some thousand bytes.
MAX_ANSWER_BYTES = 64 * 1024

InHand = Callable[[Callable[[Record], bool]], tuple[Record, FailureState | None] | None]


@dataclass(frozen=True, slots=True)
class Found:
    """What is known of an order.

    Attributes:
        certainty: ``known``; ``unknown`` to every worker; ``unsure`` where some worker may know.
        body: The order's fields, or ``error`` with why there are none.
    """

    certainty: Literal["known", "unknown", "unsure"]
    body: dict[str, Any]


class OrderLookup:
    """Finds an order in this worker's records and entries, else asks the other workers."""

    def __init__(
        self,
        deliveries: DeliveriesTable,
        in_hand: InHand,
        owners: Callable[[], Mapping[int, str]],
        own_url: URL,
        *,
        consumer: str = "order_logging",
        events: Events = ORDER_PAID,
        partition_of: Callable[[bytes, int], int],
        retention_hours: float,
        partition_count: Callable[[], Awaitable[int]],
        saved: Callable[[bytes], Awaitable[FallbackRow | None]],
        unread: Callable[[int], Awaitable[int | None]],
    ) -> None:
        """Prepare; nothing is connected yet.

        Args:
            deliveries: The entries of this worker.
            in_hand: Finds a record that is not finished; see ``Dispatcher.find``.
            owners: Base URL of every partition's worker, where it is known.
            own_url: This worker's.
            consumer: The consumer whose entries these are; its name.
            events: Reads its records.
            partition_of: The partition that Kafka's clients choose for a key, out of so many.
            retention_hours: How long entries are kept, for people to read.
            partition_count: Asks Kafka how many partitions the source topic has; may raise
                ``KafkaUnavailable``.
            saved: Finds a row of the fallback table that is not published, by the record's key;
                may raise ``DatabaseUnavailable``.
            unread: Asks Kafka how many records of a partition are not in hand yet; ``None`` where
                another worker has the partition. May raise.
        """
        self._book = deliveries
        self._in_hand = in_hand
        self._owners = owners
        self._own_url = str(own_url)
        self._consumer = consumer
        self._events = events
        self._partition_of = partition_of
        self._partition_count = partition_count
        self._saved = saved
        self._unread = unread
        self._retention_hours = retention_hours
        self._client: aiohttp.ClientSession | None = None

    async def find(
        self, order_id: str, *, here_only: bool = False, view: str | None = None
    ) -> Found:
        """Return what is known of an order; never raises.

        Args:
            order_id: The order.
            here_only: Ask no other worker.
            view: What ``VIEW_HEADER`` says, where another worker asks.
        """
        body = self._find_here(order_id)
        if body is not None:
            return Found("known", body)
        owners = dict(self._owners())
        doubts = self._doubts_here(owners, view)
        unread = await self._unread_here(order_id, owners, doubts)
        if not here_only:
            answer = await self._ask_others(order_id, owners, doubts)
            if answer is not None and answer.certainty == "known":
                return answer
            unread = unread or answer
            if not doubts and unread is None:  # Kafka may be slow to answer
                doubts = await self._doubts_elsewhere(owners)
        if (row := await self._saved_here(order_id, doubts)) is not None:
            return Found("known", {**saved_fields(order_id, row), "worker": self._own_url})
        return unread or self._not_found(order_id, doubts)

    def _not_found(self, order_id: str, doubts: list[str]) -> Found:
        if doubts:
            return Found("unsure", {"error": f"order {order_id} is not found: {'; '.join(doubts)}"})
        return Found(
            "unknown",
            {
                "error": f"order {order_id} is not known: no record of it is in hand or saved, and "
                f"none was finished in the last {self._retention_hours:g} hours"
            },
        )

    async def close(self) -> None:
        """Let go of connections. May be called twice."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    # --- here -----------------------------------------------------------------------------------

    def _find_here(self, order_id: str) -> dict[str, Any] | None:
        key = entry_key(order_id)

        def is_wanted(record: Record) -> bool:
            value = record.value or b""
            # Most are told without being read; an escape may stand for any character.
            return (key in value or b"\\" in value) and str(
                _order_id(record, self._events)
            ) == order_id

        if (found := self._in_hand(is_wanted)) is not None:
            return {**_in_hand_fields(*found, self._events), "worker": self._own_url}
        if (entry := self._book.find(order_id)) is not None:
            return {**entry_fields(entry), "worker": self._own_url}
        return None

    async def _saved_here(self, order_id: str, doubts: list[str]) -> FallbackRow | None:
        """Return the row in which the order waits, if it does; adds to the doubts if that fails."""
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                return await self._saved(entry_key(order_id))
        except DatabaseUnavailable as error:
            doubts.append(f"the fallback table does not answer: {error}")
        except TimeoutError:
            doubts.append("the fallback table does not answer in time")
        return None

    async def _unread_here(
        self, order_id: str, owners: Mapping[int, str], doubts: list[str]
    ) -> Found | None:
        """Return that the order may be among records that are not read yet, if it may be."""
        partition = self._likely_partition(order_id, owners)
        if partition not in self._book.partitions:
            return None
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                count = await self._unread(partition)
        except Exception as error:  # noqa: BLE001 - whatever Kafka's client raises
            doubts.append(
                f"Kafka does not say what of partition {partition} is not read ({error!r})"
            )
            return None
        if not count:
            return None
        told = f"{count:,} records of its partition {partition} are not read"
        body = {"error": f"order {order_id} is not seen yet, {told}", UNREAD: count}
        return Found("unsure", {**body, "partition": partition, "worker": self._own_url})

    def _doubts_here(self, owners: Mapping[int, str], view: str | None) -> list[str]:
        """Return why this worker may not know what it should."""
        doubts = []
        if view is not None and view != self._view(self._own_url, owners):
            doubts.append("partitions have moved, or the address asked is another worker's")
        if not self._book.ready:
            return ["this worker is reading its table", *doubts]
        if not self._book.complete:
            doubts.append("this worker's table is incomplete, as its log says")
        mine = self._book.partitions
        taken = [p for p, url in sorted(owners.items()) if url == self._own_url and p not in mine]
        if taken:
            doubts.append(
                f"another worker, with {_named(taken)}, tells the same address {self._own_url} "
                "(ADVERTISED_URL)"
            )
        return doubts

    # --- elsewhere ------------------------------------------------------------------------------

    async def _ask_others(
        self, order_id: str, owners: Mapping[int, str], doubts: list[str]
    ) -> Found | None:
        """Return what another worker knows, or else that one may come to know; adds doubts."""
        likely = owners.get(self._likely_partition(order_id, owners), "")
        others = set(owners.values()) - {self._own_url}
        unread = None
        for urls in (others & {likely}, others - {likely}):
            answers = await asyncio.gather(*(self._ask(url, order_id, owners) for url in urls))
            for answer in answers:
                if answer.certainty == "known":
                    return answer
                if UNREAD in answer.body:
                    unread = answer
                elif answer.certainty == "unsure":
                    doubts.append(str(answer.body["error"]))
        return unread

    async def _doubts_elsewhere(self, owners: Mapping[int, str]) -> list[str]:
        """Return why nobody may have been asked who should."""
        if not owners:
            return ["which worker has which partition is not known yet"]
        known = owners.keys() | set(self._book.partitions)
        try:
            count = max(max(known) + 1, await self._partition_count())
        except KafkaUnavailable as error:
            return [str(error)]
        nobodys = [partition for partition in range(count) if partition not in known]
        return [f"which worker has {_named(nobodys)} is not known"] if nobodys else []

    def _view(self, asked_url: str, owners: Mapping[int, str]) -> str:
        return f"{zlib.crc32(json.dumps([asked_url, sorted(owners.items())]).encode()):08x}"

    def _likely_partition(self, order_id: str, owners: Mapping[int, str]) -> int:
        return self._partition_of(entry_key(order_id), max(owners, default=0) + 1)

    async def _ask(self, url: str, order_id: str, owners: Mapping[int, str]) -> Found:
        if self._client is None:
            self._client = make_client(ASK_SECONDS)
        headers = {ROUTED_HEADER: self._own_url, VIEW_HEADER: self._view(url, owners)}
        answer = await ask_worker(self._client, url, order_id, headers, self._consumer)
        if isinstance(answer, str):
            problem = answer
        elif answer.status == 200:
            return Found("known", answer.body)
        elif answer.status == 404:
            return Found("unknown", {})
        elif UNREAD in answer.body and "error" in answer.body:
            return Found("unsure", answer.body)
        else:
            problem = f"status {answer.status}"
            if "error" in answer.body:
                problem += f", {answer.body['error']}"
        return Found("unsure", {"error": f"worker {url} does not say: {problem}"})


def _named(partitions: Collection[int]) -> str:
    return "partition " + ", ".join(map(str, partitions))


@dataclass(frozen=True, slots=True)
class Lookup:
    """What a worker answers about an order: a JSON object."""

    status: int
    body: dict[str, Any]


def make_client(seconds: float) -> aiohttp.ClientSession:
    """Return a client that asks workers, and waits so long for an answer."""
    return aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=seconds),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,  # a small answer might become a large one
    )


async def ask_worker(
    client: aiohttp.ClientSession,
    url: str,
    order_id: str,
    headers: Mapping[str, str],
    consumer: str,
) -> Lookup | str:
    """Ask a worker about an order; return its answer, or why there is none. Never raises.

    Redirects are not followed, and no more than ``MAX_ANSWER_BYTES`` are taken: at its address,
    which members of the group tell each other, something else may answer.
    """
    try:
        async with client.get(
            order_page(URL(url), order_id).with_query(consumer=consumer),
            headers={**headers, "Accept-Encoding": "identity"},
            allow_redirects=False,
        ) as response:
            if 300 <= response.status < 400:
                return f"status {response.status}, a redirect, which is not followed"
            content = b""
            async for chunk in response.content.iter_any():
                content += chunk
                if len(content) > MAX_ANSWER_BYTES:
                    return f"its answer is over {MAX_ANSWER_BYTES} bytes"
            body = json.loads(content, parse_constant=_no_constant)
    except Exception as error:  # noqa: BLE001 - whatever it sends, or is called
        return str(error) or type(error).__name__
    if not isinstance(body, dict):
        return f"status {response.status}, and no answer of an order relay"
    return Lookup(response.status, body)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def order_page(worker: URL, order_id: str) -> URL:
    """Return where a worker says what became of an order."""
    return worker.joinpath(f"orders/{quote(order_id, safe='')}", encoded=True)


def _order_id(record: Record, events: Events) -> OrderId | None:
    try:
        return events.subject(events.decode(record.value))
    except InvalidEvent:
        return None


def entry_fields(entry: Entry) -> dict[str, Any]:
    """Return an entry as ``/orders`` shows it."""
    return {
        "orderId": entry.order_id,
        "state": entry.state,
        "attempts": entry.attempts,
        "eventId": entry.event_id,
        "topic": entry.topic,
        "partition": entry.partition,
        "offset": entry.offset,
        "paidAt": entry.paid_at or None,
        "publishedAt": _moment(entry.published_ms),
        "startedAt": _moment(entry.started_ms),
        "finishedAt": _moment(entry.finished_ms),
        "lastError": entry.last_error or None,
        "httpStatus": entry.http_status,
        "deadLetterReason": entry.dead_letter_reason or None,
    }


def _in_hand_fields(record: Record, trouble: FailureState | None, events: Events) -> dict[str, Any]:
    event = events.decode(record.value)
    return {
        "orderId": events.subject(event),
        "state": "in_progress",
        "attempts": trouble.failures if trouble is not None else 0,
        "eventId": record.idempotency_key(),
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "paidAt": paid_at_of(event) or None,
        "publishedAt": _moment(record.timestamp_ms),
        "startedAt": None,
        "finishedAt": None,
        "lastError": trouble.last_error if trouble is not None else None,
        "httpStatus": trouble.http_status if trouble is not None else None,
        "deadLetterReason": None,
    }


def saved_fields(order_id: str, row: FallbackRow) -> dict[str, Any]:
    """Return what the page shows of an order that waits in the fallback table."""
    return {
        "orderId": order_id,
        "state": "saved",
        "fallbackId": row.id,
        "fallbackStatus": row.status.value,
        "attempts": row.retry_count,
        "topic": row.topic,
        "lastError": row.error_message,
        "savedAt": row.created_at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    }


def _moment(milliseconds: int) -> str | None:
    if milliseconds <= 0:
        return None
    try:
        when = datetime.fromtimestamp(milliseconds / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return None  # such as microseconds: no year that a date can have
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")
