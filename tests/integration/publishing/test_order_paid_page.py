"""``POST /order-paid`` over real HTTP: every answer, and what is in Kafka or the table after it."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.typedefs import Handler

from order_relay.errors import DatabaseUnavailable, RecordTooLarge
from order_relay.publishing.publisher import Publisher
from order_relay.web.access import Access
from order_relay.web.order_paid_page import Limits, OrderPaidPage
from tests.support.memory_store import MemoryFallbackStore
from tests.support.publish_fakes import FakeProducer
from tests.support.publish_ways import TOPIC, body, serving
from tests.support.waiting import eventually

JSON = {"Content-Type": "application/json"}
WAIT_SECONDS = 20.0


@dataclass
class Answer:
    """An HTTP answer."""

    status: int
    json: Any
    headers: Mapping[str, str]


@dataclass
class Intake:
    """A page, its fakes, and what it has counted as rejected."""

    url: str
    kafka: FakeProducer
    store: MemoryFallbackStore
    publisher: Publisher
    http: aiohttp.ClientSession
    rejected: list[str] = field(default_factory=list)

    async def post(self, data: Any, **headers: str) -> Answer:
        """Post a body; underscores in header names are hyphens."""
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.http.post(f"{self.url}/order-paid", data=data, headers=JSON | names) as it:
            text = await it.text()
            parsed = json.loads(text) if it.content_type == "application/json" else text
            return Answer(it.status, parsed, it.headers)

    async def raw(self, request: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Send bytes over a new connection."""
        port = int(self.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        await writer.drain()
        return reader, writer


@asynccontextmanager
async def opened(token: str | None = None, limits: Limits | None = None) -> AsyncIterator[Intake]:
    """An intake."""
    kafka, store = FakeProducer(), MemoryFallbackStore()
    publisher = Publisher(kafka, store, TOPIC)
    rejected: list[str] = []
    async with (
        serving(publisher, token=token, limits=limits, on_rejected=rejected.append) as url,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(WAIT_SECONDS)) as http,
    ):
        yield Intake(url, kafka, store, publisher, http, rejected)
        kafka.answers.set()
        await publisher.close()


@pytest.fixture
async def intake() -> AsyncIterator[Intake]:
    """An intake without a token."""
    async with opened() as one:
        yield one


async def test_published(intake: Intake) -> None:
    """202 once Kafka has the event: the body byte for byte, the order's id as key, an event id."""
    sent = b' {"extra" : "\xc3\xa9", ' + body(77)[1:] + b"\n"
    answer = await intake.post(sent)
    (record,) = intake.kafka.sent
    assert answer.status == 202
    assert answer.json == {
        "status": "published", "topic": TOPIC, "partition": 0, "offset": 0,
        "eventId": record.event_id,
    }  # fmt: skip
    assert (record.key, record.value) == (b"77", sent)


async def test_saved(intake: Intake) -> None:
    """If Kafka refuses, 202 once the database has the event, with the row's id and the reason."""
    intake.kafka.refuse_all()
    answer = await intake.post(body(), event_id="e-1")
    assert answer.status == 202
    assert answer.json["status"] == "saved"
    assert answer.json["eventId"] == "e-1"
    assert "timed out" in answer.json["reason"]
    row = intake.store.rows[answer.json["id"]]
    assert (row.payload, row.headers) == (body(), (("event-id", b"e-1"),))


async def test_neither(intake: Intake) -> None:
    """503 if both refuse; the same request with the answer's event id succeeds later."""
    intake.kafka.refuse_all()
    intake.store.error = DatabaseUnavailable("disk full")
    answer = await intake.post(body())
    assert answer.status == 503
    assert int(answer.headers["Retry-After"]) > 0
    assert "timed out" in answer.json["error"]
    assert "disk full" in answer.json["error"]
    intake.kafka.refuse = lambda _: None
    intake.store.error = None
    again = await intake.post(body(), event_id=answer.json["eventId"])
    assert again.status == 202
    assert [record.event_id for record in intake.kafka.sent] == [answer.json["eventId"]] * 2


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (body(orderId=""), "orderId"),
        (body(paidAt="yesterday"), "paidAt"),
        (body(orderItems=[{"productId": 1}]), "orderItems[0].orderQuantity"),
        (body(orderItems=[{"productId": 1.5, "orderQuantity": 1}]), "orderItems[0].productId"),
        (b'{"eventType":"ORDER_PAID","orderId":1}', "userId"),
        (b"[]", None),
        (b"", None),
        (b"\xff\xfe", None),
        (b"[" * 100_000, None),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_wrong_events(intake: Intake, data: bytes, field: str | None) -> None:
    """400 with the field that is wrong; nothing was published."""
    answer = await intake.post(data)
    assert (answer.status, answer.json["field"]) == (400, field)
    assert "\n" not in answer.json["error"]
    assert not intake.kafka.sent


@pytest.mark.parametrize("name", ["event-id", "Idempotency-Key", "idempotency-key"])
async def test_event_ids_of_clients(intake: Intake, name: str) -> None:
    """The client's id, under either header name, is the event id; UTF-8 may be named."""
    for content_type in ("application/json", "application/json; charset=UTF-8"):
        headers = {"Content-Type": content_type, name: "order-123 paid"}
        answer = await intake.post(body(), **headers)
        assert answer.json["eventId"] == "order-123 paid"
    assert [record.event_id for record in intake.kafka.sent] == ["order-123 paid"] * 2


async def test_tokens() -> None:
    """If a token is set, every client needs it, also on loopback."""
    async with opened(token="s3cret") as intake:
        for headers in ({}, {"Authorization": "Bearer s3cre"}, {"Authorization": "Bearer \u00e9"}):
            answer = await intake.post(body(), **headers)
            assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
            assert "s3cret" not in answer.json["error"]
        assert not intake.kafka.sent
        for scheme in ("Bearer", "bearer"):
            assert (await intake.post(body(), Authorization=f"{scheme} s3cret")).status == 202


@pytest.mark.parametrize(
    ("headers", "status", "word"),
    [
        # Two ids that differ, an empty, a long and an unprintable one.
        ({"event-id": "a", "Idempotency-Key": "b"}, 400, "event-id"),
        ({"event-id": ""}, 400, "event-id"),
        ({"event-id": "x" * 256}, 400, "event-id"),
        ({"event-id": "a\tb"}, 400, "event-id"),
        # Without a token: requests through a proxy, or for a foreign host name.
        ({"X-Forwarded-For": "10.0.0.9"}, 403, "API_TOKEN"),
        ({"Forwarded": "for=10.0.0.9"}, 403, "API_TOKEN"),
        ({"Host": "evil.example"}, 403, "API_TOKEN"),
        # Bodies that are not plain JSON in UTF-8.
        ({"Content-Type": "text/plain"}, 415, "application/json"),
        ({"Content-Type": ""}, 415, "application/json"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415, "application/json"),
        ({"Content-Type": "application/json; charset=latin-1"}, 415, ""),
        ({"Content-Encoding": "gzip"}, 415, ""),
    ],
    ids=str,
)
async def test_invalid_headers(
    intake: Intake, headers: dict[str, str], status: int, word: str
) -> None:
    """Each is refused, the error names the header, and nothing is published."""
    answer = await intake.post(body(), **headers)
    assert answer.status == status
    assert word in answer.json["error"]
    assert status != 400 or answer.json["field"] == word
    assert not intake.kafka.sent


async def test_too_large() -> None:
    """413 for a body over the limit, with a length or in chunks, and if Kafka finds it too large.

    The first two are counted by the page, once each.
    """
    async with opened(limits=Limits(body_bytes=1000)) as intake:

        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(50):
                yield b" " * 100

        assert (await intake.post(b" " * 1001)).status == 413
        assert (await intake.post(chunks())).status == 413
        assert not intake.kafka.sent
        fits = body() + b" " * (1000 - len(body()))
        assert (await intake.post(fits)).status == 202
        intake.kafka.refuse = lambda _: RecordTooLarge(TOPIC, 1000)
        assert (await intake.post(body())).status == 413
        assert not intake.store.rows
        assert intake.rejected == ["too_large"] * 2


@pytest.mark.parametrize(
    "limits", [Limits(requests=3), Limits(total_bytes=3 * len(body()))], ids=["requests", "bytes"]
)
async def test_bursts(limits: Limits, caplog: pytest.LogCaptureFixture) -> None:
    """Beyond the limit 429 with Retry-After, logged once and counted each time; later 202 again."""
    async with opened(limits=limits) as intake:
        intake.kafka.answers.clear()
        taken = [asyncio.create_task(intake.post(body())) for _ in range(3)]
        await eventually(lambda: len(intake.kafka.sent) == 3)
        for _ in range(5):
            answer = await intake.post(body())
            assert answer.status == 429
            assert int(answer.headers["Retry-After"]) > 0
        assert len(intake.kafka.sent) == 3
        intake.kafka.answers.set()
        assert {answer.status for answer in await asyncio.gather(*taken)} == {202}
        assert (await intake.post(body())).status == 202
        assert (await intake.post(b"{}")).status == 400
        assert intake.rejected == ["busy"] * 5
    assert [r.message for r in caplog.records if "429" in r.message] == [
        f"Too many paid orders at once, refused with 429 requests=3 bytes={3 * len(body())}"
    ]


async def test_chunked_bodies_reserve_room_for_their_size() -> None:
    """They reserve the largest size only until they are read."""

    async def in_chunks() -> AsyncIterator[bytes]:
        yield body()

    async with opened(limits=Limits(body_bytes=1000, total_bytes=2000)) as intake:
        intake.kafka.answers.clear()
        taken = []
        for _ in range(4):
            taken.append(asyncio.create_task(intake.post(in_chunks())))
            await eventually(lambda: len(intake.kafka.sent) == len(taken))
        intake.kafka.answers.set()
        assert [answer.status for answer in await asyncio.gather(*taken)] == [202] * 4


def errors(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """The errors in the log."""
    return [record for record in caplog.records if record.levelno >= logging.ERROR]


RAW_HEAD = b"POST /order-paid HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def head(length: int) -> bytes:
    """The head of a request."""
    return RAW_HEAD + b"Content-Length: %d\r\n\r\n" % length


@pytest.mark.parametrize("kafka_answers", [True, False], ids=["published", "saved"])
async def test_a_client_that_leaves(
    intake: Intake, caplog: pytest.LogCaptureFixture, kafka_answers: bool
) -> None:
    """If it disconnects during a publish, the event is still published or saved."""
    caplog.set_level(logging.INFO)
    intake.kafka.answers.clear()
    _, writer = await intake.raw(head(len(body())) + body())
    await eventually(lambda: intake.kafka.sent)
    writer.transport.abort()
    # After another connection's request, the server has noticed.
    assert (await intake.post(b"{}")).status == 400
    if not kafka_answers:
        intake.kafka.refuse_all()
    intake.kafka.answers.set()
    await eventually(lambda: not intake.publisher.in_flight)
    assert len(intake.store.rows) == (0 if kafka_answers else 1)
    assert not errors(caplog)


async def test_an_event_that_is_lost_after_its_client_left(
    intake: Intake, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has its id: no answer tells anybody that it must be posted again."""
    intake.kafka.answers.clear()
    intake.store.error = DatabaseUnavailable("disk full")
    request = head(len(body())).replace(b"\r\n\r\n", b"\r\nEvent-Id: e-1\r\n\r\n") + body()
    _, writer = await intake.raw(request)
    await eventually(lambda: intake.kafka.sent)
    writer.transport.abort()
    assert (await intake.post(b"{}")).status == 400
    intake.kafka.refuse_all()
    intake.kafka.answers.set()
    await eventually(lambda: errors(caplog))
    (line,) = errors(caplog)
    assert line.getMessage().startswith("An event whose sender had left was lost: event e-1 was ")


@pytest.mark.parametrize("ending", ["abort", "half-closed"])
async def test_a_client_that_leaves_in_its_body(
    caplog: pytest.LogCaptureFixture, ending: str
) -> None:
    """Half an event is not published, its room becomes free, and no error is logged."""
    half = body()[:50]
    # Half an event leaves no room for a whole one.
    limits = Limits(total_bytes=len(half) + len(body()) - 1, body_seconds=WAIT_SECONDS)
    async with opened(limits=limits) as intake:
        _, writer = await intake.raw(head(len(body())) + half)
        async with asyncio.timeout(WAIT_SECONDS):
            while (await intake.post(body())).status != 429:
                pass  # until the half has come in
            if ending == "abort":
                writer.transport.abort()
            else:
                writer.write_eof()
            while (await intake.post(body(2))).status != 202:
                pass
        writer.close()
    values = {record.value for record in intake.kafka.sent}
    assert values <= {body(), body(2)}
    assert not errors(caplog)


async def test_a_connection_that_ends_with_the_head(caplog: pytest.LogCaptureFixture) -> None:
    """A connection closed before its request is handled logs no error."""
    kafka, handled = FakeProducer(), asyncio.Event()
    publisher = Publisher(kafka, MemoryFallbackStore(), TOPIC)

    class Closed(web.RequestHandler):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            assert self.transport is not None
            self.transport.abort()

    @web.middleware
    async def tell(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        finally:
            handled.set()

    app = web.Application(middlewares=[tell])
    OrderPaidPage(publisher, Access(None)).add_to(app.router)
    runner, loop = web.AppRunner(app), asyncio.get_running_loop()
    await runner.setup()
    server = runner.server
    assert server is not None
    listener = await loop.create_server(lambda: Closed(server, loop=loop), "127.0.0.1", 0)
    _, writer = await asyncio.open_connection(*listener.sockets[0].getsockname())
    writer.write(head(len(body())))
    await asyncio.wait_for(handled.wait(), WAIT_SECONDS)
    writer.close()
    listener.close()
    await runner.cleanup()
    await publisher.close()
    assert not kafka.sent
    assert not errors(caplog)


async def test_a_body_that_does_not_come() -> None:
    """408 for a client that does not send all of its body; its room becomes free."""
    # Half an event leaves no room for a whole one.
    limits = Limits(total_bytes=50 + len(body()) - 1, body_seconds=0.05)
    async with opened(limits=limits) as intake:
        reader, writer = await intake.raw(head(len(body())) + body()[:50])
        line = await asyncio.wait_for(reader.readline(), WAIT_SECONDS)
        assert line.startswith(b"HTTP/1.1 408")
        assert (await intake.post(body())).status == 202
        writer.close()


async def test_malformed_chunks(intake: Intake, caplog: pytest.LogCaptureFixture) -> None:
    """400 for a malformed chunk."""
    chunked = head(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    reader, writer = await intake.raw(chunked + b"5\r\n{\r\n\r\nzz\r\n")
    line = await asyncio.wait_for(reader.readline(), WAIT_SECONDS)
    assert b" 400 " in line
    writer.close()
    assert not intake.kafka.sent
    assert not errors(caplog)


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (b"POST /order-paid HTTP/1.0\r\nContent-Type: application/json\r\n", 202),
        (RAW_HEAD.replace(b"application/json", b";;=\xff/"), 415),
        (RAW_HEAD.replace(b"localhost", b"[::1"), 202),
        (RAW_HEAD.replace(b"localhost", b"[::2]:6066"), 403),
        (RAW_HEAD + b"event-id: \xc3\xa9\r\n", 202),
        (RAW_HEAD + b"event-id: \xe9\r\n", 400),
        (RAW_HEAD + b"event-id: a\r\nevent-id: b\r\n", 400),
        (RAW_HEAD + b"event-id: a\r\nEvent-Id: a\r\n", 202),
        (RAW_HEAD + b"Content-Length: -1\r\n", 400),
        (RAW_HEAD + b"Content-Length: 99999999999999999999\r\n", 400),
        (RAW_HEAD + b"X-Long: " + b"x" * 100_000 + b"\r\n", 400),
    ],
    ids=lambda value: str(value)[-50:],
)
async def test_requests_that_no_client_library_sends(
    intake: Intake, caplog: pytest.LogCaptureFixture, request_head: bytes, status: int
) -> None:
    """Each gets one of the answers above, and logs no error."""
    if b"Content-Length" not in request_head:
        request_head += b"Content-Length: %d\r\n" % len(body())
    reader, writer = await intake.raw(request_head + b"Connection: close\r\n\r\n" + body())
    line = await asyncio.wait_for(reader.readline(), WAIT_SECONDS)
    assert line.split()[1] == b"%d" % status
    writer.close()
    assert len(intake.kafka.sent) == (1 if status == 202 else 0)
    assert not errors(caplog)


async def test_other_methods_and_workers_without_a_publisher(intake: Intake) -> None:
    """405 for a GET; 404 where there is no publisher."""
    async with intake.http.get(f"{intake.url}/order-paid") as response:
        assert response.status == 405
    async with serving(None) as url, intake.http.post(f"{url}/order-paid", data=body()) as response:
        assert response.status == 404


async def test_a_server_that_stops_cuts_nothing_off(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A client that waits too long gets no answer; its event is still saved."""
    monkeypatch.setattr("order_relay.web.server.STOP_SECONDS", 0.01)
    kafka, store = FakeProducer(), MemoryFallbackStore()
    publisher = Publisher(kafka, store, TOPIC)
    kafka.answers.clear()
    async with aiohttp.ClientSession() as http:
        async with serving(publisher) as url:
            intake = Intake(url, kafka, store, publisher, http)
            waiting = asyncio.create_task(intake.post(body()))
            await eventually(lambda: kafka.sent)
        with pytest.raises(aiohttp.ClientError):
            await waiting
    assert publisher.in_flight == 1
    kafka.refuse_all()
    kafka.answers.set()
    await eventually(lambda: not publisher.in_flight)
    assert [row.payload for row in store.rows.values()] == [body()]
    assert not errors(caplog)
