"""Looking up an order: on this worker, else on the worker that has its partition."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import KW_ONLY, dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import aiohttp
from yarl import URL

from order_relay.deliveries.entries import Entry, entry_key, make_entry
from order_relay.deliveries.table import DeliveriesTable
from order_relay.delivery.outcome import FailureState, Outcome
from order_relay.errors import DatabaseUnavailable, InvalidEvent, KafkaUnavailable
from order_relay.fallback.store import FallbackRow
from order_relay.model.events import ORDER_PAID, Events, paid_at_of
from order_relay.model.record import Record

# The worker that asks. The worker that is asked must then answer for itself only.
ROUTED_HEADER = "X-Order-Relay-Routed-From"
# A checksum of the URL asked and of the partitions' owners, as the asking worker knows them.
VIEW_HEADER = "X-Order-Relay-View"
ASK_SECONDS = 3.0
CHECK_SECONDS = 2.0
# A field of the answer: so many records of the order's partition are not read yet.
UNREAD = "unread"
# A field of the answer: the worker's table was full, and has forgotten entries early.
TABLE_FULL = "table_full"
# An entry has about a thousand bytes.
MAX_ANSWER_BYTES = 64 * 1024

InHand = Callable[[Callable[[Record], bool]], tuple[Record, FailureState | None] | None]


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer about an order, this worker's or another's.

    Attributes:
        status: The HTTP status: 200; 404 if every worker answered so; otherwise 503.
        body: The order's fields, or ``error`` with the reason why there are none.
    """

    status: int
    body: dict[str, Any]


@dataclass(eq=False)
class OrderLookup:
    """Finds an order on this worker, on another worker or in the fallback table.

    Attributes:
        deliveries: The entries of this worker.
        in_hand: Finds a record that is not finished; see ``Dispatcher.find``.
        owners: Returns the base URL of each partition's worker, as far as it is known.
        own_url: The base URL of this worker.
        partition_of: Returns the partition that Kafka's clients choose for a key, given the number
            of partitions.
        retention_hours: How long entries are kept; for messages only.
        partition_count: Asks Kafka how many partitions the source topic has; may raise
            ``KafkaUnavailable``.
        saved: Finds an unpublished row of the fallback table by the record's key; may raise
            ``DatabaseUnavailable``.
        unread: Asks Kafka how many records of a partition this worker has not read yet; ``None``
            if another worker has the partition. May raise.
        consumer: The name of the consumer whose entries these are.
        events: Decodes the consumer's records.
    """

    deliveries: DeliveriesTable
    in_hand: InHand
    owners: Callable[[], Mapping[int, str]]
    own_url: str
    _: KW_ONLY
    partition_of: Callable[[bytes, int], int]
    retention_hours: float
    partition_count: Callable[[], Awaitable[int]]
    saved: Callable[[bytes], Awaitable[FallbackRow | None]]
    unread: Callable[[int], Awaitable[int | None]]
    consumer: str = "order_logging"
    events: Events = ORDER_PAID
    _client: aiohttp.ClientSession | None = None

    async def find(
        self, order_id: str, *, here_only: bool = False, view: str | None = None
    ) -> Answer:
        """Look up an order; never raises.

        Args:
            order_id: The order.
            here_only: Ask no other worker.
            view: The value of ``VIEW_HEADER``, if another worker asks.
        """
        body = self._find_here(order_id)
        if body is not None:
            return Answer(200, body)
        owners = dict(self.owners())
        # Why the order may exist, though it is not found.
        reasons = self._reasons_here(owners, view)
        full = [self.own_url] if self.deliveries.full else []
        unread = await self._unread_here(order_id, owners, reasons)
        if not here_only:
            answer = await self._ask_others(order_id, owners, reasons, full)
            if answer is not None and answer.status == 200:
                return answer
            unread = unread or answer
            if not reasons and unread is None:  # Kafka may be slow to answer
                reasons = await self._reasons_elsewhere(owners)
        if (row := await self._saved_here(order_id, reasons)) is not None:
            return Answer(200, {**saved_fields(order_id, row), "worker": self.own_url})
        if unread is not None:
            return unread
        if reasons:
            return Answer(503, {"error": f"order {order_id} is not found: {'; '.join(reasons)}"})
        text = (
            f"order {order_id} is not known: no record of it is in hand or saved, and none was "
            f"finished in the last {self.retention_hours:g} hours"
        )
        if full:
            text += (
                f"; but the table of {', '.join(full)} was full, and forgot the oldest orders "
                "early (DELIVERIES_MAX_ENTRIES)"
            )
        return Answer(404, {"error": text} | ({TABLE_FULL: True} if full else {}))

    async def close(self) -> None:
        """Close connections. May be called twice."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    # --- here -----------------------------------------------------------------------------------

    def _find_here(self, order_id: str) -> dict[str, Any] | None:
        key = entry_key(order_id)

        def is_wanted(record: Record) -> bool:
            value = record.value or b""
            # Decode only candidates. With an escape in the value, the key may not appear as it is.
            if key not in value and b"\\" not in value:
                return False
            try:
                return str(self.events.subject(self.events.decode(record.value))) == order_id
            except InvalidEvent:
                return False

        if (found := self.in_hand(is_wanted)) is not None:
            return {**_in_hand_fields(*found, self.events), "worker": self.own_url}
        if (entry := self.deliveries.find(order_id)) is not None:
            return {**entry_fields(entry), "worker": self.own_url}
        return None

    async def _saved_here(self, order_id: str, reasons: list[str]) -> FallbackRow | None:
        """Return the order's row in the fallback table; adds to ``reasons`` on failure."""
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                return await self.saved(entry_key(order_id))
        except (DatabaseUnavailable, TimeoutError) as error:
            reasons.append(
                f"the fallback table does not answer: {str(error) or 'no answer in time'}"
            )
            return None

    async def _unread_here(
        self, order_id: str, owners: Mapping[int, str], reasons: list[str]
    ) -> Answer | None:
        """Return 503 if the order may be among records that are not read yet."""
        partition = self._likely_partition(order_id, owners)
        if partition not in self.deliveries.partitions:
            return None
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                count = await self.unread(partition)
        except Exception as error:  # noqa: BLE001 - whatever Kafka's client raises
            reasons.append(
                f"Kafka does not say what of partition {partition} is not read: "
                f"{str(error) or 'no answer in time'}"
            )
            return None
        if not count:
            return None
        text = (
            f"order {order_id} is not seen yet, {count:,} records of its partition {partition} are "
            "not read"
        )
        body = {"error": text, UNREAD: count, "partition": partition, "worker": self.own_url}
        return Answer(503, body)

    def _reasons_here(self, owners: Mapping[int, str], view: str | None) -> list[str]:
        """Return why this worker may lack an order that it should have."""
        reasons = []
        if view is not None and view != _view(self.own_url, owners):
            reasons.append("partitions have moved, or the address asked is another worker's")
        if not self.deliveries.ready:
            return ["this worker is reading its table", *reasons]
        if not self.deliveries.complete:
            reasons.append("this worker's table is incomplete, as its log says")
        mine = self.deliveries.partitions
        taken = [p for p, url in sorted(owners.items()) if url == self.own_url and p not in mine]
        if taken:
            reasons.append(
                f"another worker, with {_names_of(taken)}, tells the same address {self.own_url} "
                "(ADVERTISED_URL)"
            )
        return reasons

    # --- elsewhere ------------------------------------------------------------------------------

    async def _ask_others(
        self, order_id: str, owners: Mapping[int, str], reasons: list[str], full: list[str]
    ) -> Answer | None:
        """Return an answer with the order, else one with unread; adds to ``reasons``, ``full``."""
        likely = owners.get(self._likely_partition(order_id, owners), "")
        others = set(owners.values()) - {self.own_url}
        unread = None
        for urls in (others & {likely}, others - {likely}):
            answers = await asyncio.gather(*(self._ask(url, order_id, owners) for url in urls))
            for url, answer in zip(urls, answers, strict=True):
                if isinstance(answer, str):
                    reasons.append(f"worker {url} does not say: {answer}")
                elif answer.status == 200:
                    return answer
                elif UNREAD in answer.body:
                    unread = answer
                elif answer.status != 404:
                    problem = f"status {answer.status}, {answer.body.get('error', 'no reason')}"
                    reasons.append(f"worker {url} does not say: {problem}")
                elif TABLE_FULL in answer.body:
                    full.append(url)
        return unread

    async def _reasons_elsewhere(self, owners: Mapping[int, str]) -> list[str]:
        """Return why a worker that has the order may not have been asked."""
        if not owners:
            return ["which worker has which partition is not known yet"]
        known = owners.keys() | set(self.deliveries.partitions)
        try:
            count = max(max(known) + 1, await self.partition_count())
        except KafkaUnavailable as error:
            return [str(error)]
        unowned = [partition for partition in range(count) if partition not in known]
        return [f"which worker has {_names_of(unowned)} is not known"] if unowned else []

    def _likely_partition(self, order_id: str, owners: Mapping[int, str]) -> int:
        return self.partition_of(entry_key(order_id), max(owners, default=0) + 1)

    async def _ask(self, url: str, order_id: str, owners: Mapping[int, str]) -> Answer | str:
        self._client = self._client or make_client(ASK_SECONDS)
        headers = {ROUTED_HEADER: self.own_url, VIEW_HEADER: _view(url, owners)}
        return await ask_worker(self._client, url, order_id, headers, self.consumer)


def _view(asked_url: str, owners: Mapping[int, str]) -> str:
    return f"{zlib.crc32(json.dumps([asked_url, sorted(owners.items())]).encode()):08x}"


def _names_of(partitions: Collection[int]) -> str:
    return "partition " + ", ".join(map(str, partitions))


def make_client(seconds: float) -> aiohttp.ClientSession:
    """Return a client for asking workers, with this total time-out."""
    return aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=seconds),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,  # a small answer could unpack to a large one
    )


async def ask_worker(
    client: aiohttp.ClientSession,
    url: str,
    order_id: str,
    headers: Mapping[str, str],
    consumer: str | None,
) -> Answer | str:
    """Ask a worker about an order of a consumer (None: its first); see ``get_object``."""
    try:
        page = URL(url).joinpath(f"orders/{quote(order_id, safe='')}", encoded=True)
    except ValueError as error:
        return str(error)
    query = {"consumer": consumer} if consumer else {}
    return await get_object(client, page.with_query(query), headers)


async def get_object(
    client: aiohttp.ClientSession,
    url: URL,
    headers: Mapping[str, str],
    max_bytes: int = MAX_ANSWER_BYTES,
) -> Answer | str:
    """Get a JSON object from a worker; return its answer, or why there is none. Never raises.

    Another program may answer at the address, which other members of the group gave: redirects are
    not followed, and an answer over ``max_bytes`` is refused.
    """
    try:
        async with client.get(
            url, headers={**headers, "Accept-Encoding": "identity"}, allow_redirects=False
        ) as response:
            if 300 <= response.status < 400:
                return f"status {response.status}, a redirect, which is not followed"
            content = b""
            async for chunk in response.content.iter_any():
                content += chunk
                if len(content) > max_bytes:
                    return f"its answer is over {max_bytes} bytes"
            try:
                body = json.loads(content, parse_constant=_refuse_constant)
            except ValueError:
                body = None
    except Exception as error:  # noqa: BLE001 - any error means no answer
        return str(error) or type(error).__name__
    if not isinstance(body, dict):
        return f"status {response.status}, and no answer of an order relay"
    return Answer(response.status, body)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def entry_fields(entry: Entry) -> dict[str, Any]:
    """Return an entry as the fields of the order's page."""
    return {
        "orderId": entry.order_id,
        "state": entry.state,
        "attempts": entry.attempts,
        "eventId": entry.event_id,
        "topic": entry.topic,
        "partition": entry.partition,
        "offset": entry.offset,
        "paidAt": entry.paid_at or None,
        "publishedAt": _iso_time(entry.published_ms),
        "startedAt": _iso_time(entry.started_ms),
        "finishedAt": _iso_time(entry.finished_ms),
        "lastError": entry.last_error or None,
        "httpStatus": entry.http_status,
        "deadLetterReason": entry.dead_letter_reason or None,
    }


def _in_hand_fields(record: Record, state: FailureState | None, events: Events) -> dict[str, Any]:
    event = events.decode(record.value)
    so_far = state or FailureState(0, "", None)
    outcome = Outcome(
        False,
        so_far.failures,
        paid_at=paid_at_of(event),
        http_status=so_far.http_status,
        last_error=so_far.last_error,
    )
    fields = entry_fields(make_entry(record, "", outcome, 0, None))
    return {**fields, "orderId": events.subject(event), "state": "in_progress"}


def saved_fields(order_id: str, row: FallbackRow) -> dict[str, Any]:
    """Return the page's fields of an order that waits in the fallback table."""
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


def _iso_time(milliseconds: int) -> str | None:
    if milliseconds <= 0:
        return None
    try:
        when = datetime.fromtimestamp(milliseconds / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return None  # out of range, such as a timestamp in microseconds
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")
