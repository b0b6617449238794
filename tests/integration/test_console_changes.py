"""The console over HTTP: wrong requests, rows, audit log, other workers."""

import asyncio
import html
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from yarl import URL

from order_relay.errors import DatabaseUnavailable, TopicUnusable
from order_relay.fallback.sql.audit_log import AuditEntry, AuditLog
from order_relay.fallback.store import FallbackRow, NewMessage, RowFilter, Status
from order_relay.fallback.table import FallbackTable
from order_relay.settings import Settings
from order_relay.web.access import SIGNATURE_HEADER, Access
from order_relay.web.console import changes
from order_relay.web.console.changes import Changes
from order_relay.web.console.cluster import Cluster
from order_relay.web.console.pages import Console
from order_relay.web.server import WebServer
from tests.support.figures import all_figures
from tests.support.http_request import ask
from tests.support.kafka.ports import LOOPBACK
from tests.support.publish_fakes import gave_up
from tests.support.raw_server import Peer, RawServer
from tests.support.standing_health import StandingDispatcher, served_consumer
from tests.support.waiting import eventually
from tests.unit.test_console import stats
from tests.unit.test_open_letters import Topic, letter

WAIT_SECONDS = 10.0
TOKEN = "s3cret"
NO_HISTORY: dict[str, Any] = {"minutes": [], "target": []}
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}


class Served:
    """A console over a table with two FAILED rows and a topic with three letters."""

    def __init__(self, table: FallbackTable) -> None:
        self.table = table
        self.audit = AuditLog(table.engine)
        self.topic = Topic(*(letter(n) for n in range(3)))
        self.letters = self.topic.watched()
        self.access = Access(TOKEN)
        dispatcher = StandingDispatcher()
        self.paused = dispatcher.pauses
        self.members: dict[str, set[str]] = {}

        self.opens: Callable[[], Any] | None = None

        async def members() -> dict[str, set[str]]:
            return self.members

        def no_topic() -> Any:
            assert self.opens is not None, "no letter may be changed here"
            return self.opens()

        cluster = Cluster(URL("http://127.0.0.1:1/"), {}, members, self.access.sign)
        consumers = {
            "order_logging": served_consumer(
                settings=Settings(order_paid_topic="orders", dlq_topic="orders.DLQ"),
                letters=self.letters,
                open_topic=no_topic,
                dispatcher=dispatcher,
            )
        }
        served_changes = Changes(
            consumers,
            table,
            self.audit,
            producer=None,  # type: ignore[arg-type] # nothing is published here
            access=self.access,
            cluster=cluster,
        )
        self.server = WebServer(
            LOOPBACK,
            0,
            CollectorRegistry(),
            {},
            console=Console(served_changes),
            access=self.access,
        )

    async def ask(
        self, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Post to a path, with the token unless other headers are given."""
        form: dict[str, Any] = {"data" if isinstance(body, bytes) else "json": body}
        url = f"http://{LOOPBACK}:{self.server.port}{path}"
        given = AUTHORIZED if headers is None else headers
        answer = await ask(url, "POST", headers=given, **form)
        return answer.status, answer.json

    async def page(self, path: str) -> str:
        """A page of the console."""
        answer = await ask(f"http://{LOOPBACK}:{self.server.port}{path}")
        assert answer.status == 200
        return answer.text


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    """A console."""
    table = FallbackTable(f"sqlite+aiosqlite:///{tmp_path}/relay.db")
    await table.open()
    for number in range(3):
        await table.save(NewMessage("orders", b"%d" % number, b"{}"))
    claim = await table.claim(limit=2, lease_seconds=60)
    await table.settle(claim.token, [gave_up(row.id, 3, "refused") for row in claim.rows])
    one = Served(table)
    await one.letters.refresh(one.topic)
    await one.server.start()
    try:
        yield one
    finally:
        await one.server.stop()
        await table.close()


async def test_a_group_links_to_its_own_letters(served: Served) -> None:
    """Letters of another cause with the same reason and status are not among them."""
    served.topic.letters_there += [
        letter(3, message="HTTP 400: bad 1"),
        letter(4, message="HTTP 400: bad 2"),
    ]
    await served.letters.refresh(served.topic)
    groups = await served.page("/dead-letters?view=groups&since=2020-01-01")
    links = re.findall(r'<tr><td>(\d)</td><td><a href="([^"]+)"', groups)
    assert [count for count, _ in links] == ["3", "2"]
    for count, link in links:
        assert "since=2020-01-01" in link
        assert f"<p>{count} letters match." in await served.page(
            f"/dead-letters{html.unescape(link)}"
        )


async def test_another_workers_figures_may_come_in_many_packets(served: Served) -> None:
    """An answer in packets, as with six hours of history, is read completely."""

    async def script(peer: Peer) -> None:
        for figures in (all_figures() | stats(), NO_HISTORY):
            await peer.head()
            body = json.dumps(figures).encode()
            head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
            await peer.send(head, body[:9], body[9:])

    async with RawServer(script) as server:
        served.members = {"order_logging": {server.url}}
        overview = await served.page("/")
    assert "works for 9 s" in overview
    assert "does not answer" not in overview


async def test_another_worker_of_another_version_has_other_figures(served: Served) -> None:
    """During an upgrade: pages show its figures, or say why they cannot."""
    minute = {"at": 60, "lag": 1, "oldest_seconds": 0.5}
    history = NO_HISTORY | {"minutes": [minute]}
    whole = all_figures() | stats()
    others = [(whole, history | {"minutes": [{"at": 60}]})]
    others += [({k: v for k, v in whole.items() if k != name}, history) for name in whole]
    others += [(whole | {name: None}, history) for name in whole]
    others += [(whole | {"partitions": [{"number": 0}]}, history)]
    answers: list[dict[str, Any]] = []

    async def script(peer: Peer) -> None:
        while True:
            await peer.head()
            body = json.dumps(answers.pop(0)).encode()
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body), body)

    async with RawServer(script) as server:
        served.members = {"order_logging": {server.url}}
        for other in others:
            for page in ("/", "/consumers"):
                answers[:] = other
                await served.page(page)
        answers[:] = {k: v for k, v in whole.items() if k != "partitions"}, history
        assert "another version, its figures lack &#39;partitions&#39;" in await served.page("/")


async def test_the_page_of_an_order_says_that_open_letters_are_not_known(served: Served) -> None:
    """Without Kafka the page does not claim that there is no letter."""
    told = "The open letters of orders.DLQ are not known now"
    assert told not in await served.page("/order?id=1")
    served.letters.figures = None
    assert told in await served.page("/order?id=1")


@pytest.mark.parametrize(
    ("path", "body", "error"),
    [
        ("/dead-letters/redrive", b"{", "the body must be a JSON object"),
        ("/dead-letters/redrive", [], "the body: Expected `object`, got `array`"),
        ("/dead-letters/redrive", b'{"consumer": "order_logging", "filter": {"key": "\\ud800"}}',
         "the body must be a JSON object"),
        ("/fallback/requeue", b'{"filter": {"status": "FAILED", "error": "\\ud800"}}',
         "the body must be a JSON object"),
        ("/dead-letters/redrive", {"consumer": "nobody"}, "must be one of this worker's"),
        ("/dead-letters/redrive", {"consumer": 7}, "consumer: Expected `str`, got `int`"),
        ("/dead-letters/redrive", {"consumer": "order_logging"}, "say which letters"),
        ("/dead-letters/redrive", {"positions": ["0-1"]}, "must be PARTITION:OFFSET"),
        ("/dead-letters/redrive", {"positions": []}, "positions: Expected `array` of length >= 1"),
        ("/dead-letters/redrive", {"positions": "0:1"}, "Expected `array | null`"),
        ("/dead-letters/redrive", {"positions": ["0:1"] * 10_001}, "of length <= 10000"),
        ("/dead-letters/redrive", {"filter": {"since": "soon"}}, "must be ISO 8601"),
        ("/dead-letters/redrive", {"filter": {"status": "many"}}, "must be a whole number"),
        ("/dead-letters/redrive", {"filter": "all"}, "Expected `object | null`"),
        ("/dead-letters/discard", {"filter": {"key": ""}}, "filter[...]: Expected `str` of"),
        ("/dead-letters/discard", {"filter": {"resaon": "rejected"}},
         "filter has no field 'resaon', but reason, status, key"),
        ("/dead-letters/redrive", {"filter": {}, "positions": ["0:1"]}, "either positions or"),
        ("/dead-letters/redrive", {"filter": {}, "rates": 5}, "unknown field `rates`"),
        ("/dead-letters/redrive", {"filter": {}, "rate": 0}, "rate: Expected `float` > 0.0"),
        ("/dead-letters/redrive", {"filter": {}, "rate": True}, "rate: Expected `float | null`"),
        ("/dead-letters/redrive", {"filter": {}, "dry_run": "no"}, "Expected `bool`, got `str`"),
        ("/dead-letters/redrive", {"filter": {}, "dry_run": False}, "actor must be your name"),
        ("/dead-letters/discard",
         {"filter": {}, "dry_run": False, "actor": "a\x07b"}, "printable"),
        ("/fallback/requeue", {"positions": ["one"]}, "must be a whole number"),
        ("/fallback/discard", {"positions": ["1:LOST"]}, "must be one of"),
        ("/fallback/requeue", {"filter": {}}, "must have the status FAILED"),
        ("/fallback/discard", {"filter": {"status": "PENDING"}}, "must have the status FAILED"),
        ("/fallback/discard", {"filter": {"status": "LOST"}}, "must be one of"),
        ("/fallback/discard", {"filter": {"status": "FAILED", "topic": "\0"}}, "must not have"),
        ("/fallback/discard", {"filter": {"status": "FAILED", "error": ""}}, "of length >= 1"),
        ("/fallback/discard", {"filter": {"status": "FAILED", "tpoic": "a"}},
         "filter has no field 'tpoic', but status, topic, key, error"),
        ("/consumers/pause", {"consumer": "order_logging", "dry_run": False}, "actor must be"),
    ],
)  # fmt: skip
async def test_a_wrong_request_changes_nothing(
    served: Served, path: str, body: Any, error: str
) -> None:
    """One line that names what is wrong and what is allowed."""
    if isinstance(body, dict):
        body = {"consumer": "order_logging", **body}
    status, answer = await served.ask(path, body)
    assert (status, list(answer)) == (400, ["error"])
    assert error in answer["error"]
    assert "\n" not in answer["error"]
    assert (served.paused, await served.audit.latest(10)) == ([], [])
    assert (await served.table.stats()).failed == 2


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"Content-Length: 9\r\n\r\n{", 408),
        (b"Content-Length: 1048577\r\n\r\n" + b" " * 1048577, 413),
    ],
    ids=["slow", "large"],
)
async def test_a_body_that_does_not_come(
    served: Served, monkeypatch: pytest.MonkeyPatch, sent: bytes, status: int
) -> None:
    """A slow body is 408 after a time limit, and a large one 413."""
    monkeypatch.setattr(changes, "BODY_SECONDS", 0.05)
    reader, writer = await asyncio.open_connection(LOOPBACK, served.server.port)
    writer.write(b"POST /consumers/pause HTTP/1.1\r\nHost: localhost\r\n" + sent)
    line = await asyncio.wait_for(reader.readline(), WAIT_SECONDS)
    assert line.split()[1] == b"%d" % status
    writer.close()


async def test_a_client_that_leaves_in_its_body(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    """It logs no error."""
    reader, writer = await asyncio.open_connection(LOOPBACK, served.server.port)
    writer.write(
        b"POST /consumers/pause HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n"
        b"Expect: 100-continue\r\n\r\n{"
    )
    assert await asyncio.wait_for(reader.readline(), WAIT_SECONDS)  # the body is being read
    writer.close()
    await writer.wait_closed()
    await served.server.stop()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("path", ["/dead-letters/discard", "/fallback/discard", "/consumers/pause"])
async def test_without_the_token_nothing_is_changed(served: Served, path: str) -> None:
    """401 for a missing or wrong token, or its signature; a dry run only reads."""
    body = {"consumer": "order_logging", "filter": {"status": "FAILED"}, "actor": "Eve"}
    for headers in ({}, {"Authorization": "Bearer s3cre"}, Access("other").sign(path)):
        status, answer = await served.ask(path, {**body, "dry_run": False}, headers)
        assert (status, TOKEN in str(answer)) == (401, False)
    assert (served.paused, await served.audit.latest(10)) == ([], [])
    if path != "/dead-letters/discard":
        assert (await served.ask(path, body, {}))[0] == 200


async def test_a_dry_run_says_how_many_and_changes_nothing(served: Served) -> None:
    """Open letters only, by position or filter; rows by status."""
    for body, text in (
        ({"positions": ["0:0", "0:2", "0:99"]}, "2 open letters"),
        ({"filter": {}}, "3 open letters"),
        ({"filter": {"key": "1"}}, "1 open letter will"),
    ):
        status, answer = await served.ask(
            "/dead-letters/redrive", {"consumer": "order_logging", **body}
        )
        assert (status, answer["text"].startswith(text)) == (200, True), answer
    _, answer = await served.ask("/fallback/discard", {"filter": {"status": "FAILED"}})
    assert answer["text"].startswith("2 rows will be discarded")
    assert (await served.table.stats()).failed == 2


async def test_two_people_on_one_worker_change_letters_one_after_the_other(served: Served) -> None:
    """The second job waits for the first: neither is refused because of the other."""
    opened: list[asyncio.Event] = []

    class Ending(AbstractAsyncContextManager[None]):
        async def __aenter__(self) -> None:
            opened.append(asyncio.Event())
            await opened[-1].wait()
            raise TopicUnusable("orders.DLQ", "this is its end")

        async def __aexit__(self, *error: object) -> None:
            """It is never entered."""

    served.opens = Ending
    body = {"consumer": "order_logging", "filter": {}, "dry_run": False, "actor": "Ada"}
    for _ in range(2):
        assert (await served.ask("/dead-letters/redrive", body))[0] == 200
    assert len(opened) == 1
    opened[0].set()
    await eventually(lambda: len(opened) == 2, 10)
    opened[1].set()

    async def audited() -> bool:
        return len(await served.audit.latest(10)) == 2

    await eventually(audited, 10)


async def test_rows_are_changed_and_audited(served: Served) -> None:
    """Rows by id, then all FAILED ones; a row with another status is left."""
    change = {"dry_run": False, "actor": "Ada", "reason": "the topic is there again"}
    _, answer = await served.ask("/fallback/requeue", {"positions": ["1", "3"], **change})
    assert answer["changed"] == 1
    assert "1 were left" in answer["text"]
    wanted = {"status": "FAILED", "topic": "orders"}
    _, answer = await served.ask("/fallback/discard", {"filter": wanted, **change})
    assert answer["changed"] == 1
    stats = await served.table.stats()
    assert (stats.pending, stats.failed) == (2, 0)
    discarded, requeued = await served.audit.latest(10)
    assert (discarded.action, discarded.changed) == ("rows discarded", 1)
    assert discarded.detail.startswith("those with status FAILED, topic orders; reason: ")
    assert (requeued.action, requeued.changed) == ("rows requeued", 1)
    assert requeued.actor == f"Ada ({LOOPBACK})"
    assert requeued.detail == "1, 3; reason: the topic is there again"


async def test_rows_that_were_changed_before_the_database_failed_are_audited(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer says how many, and why not all."""
    pages, discard = served.table.pages, served.table.discard
    discarded: set[int] = set()

    async def row_by_row(wanted: RowFilter) -> AsyncIterator[list[FallbackRow]]:
        async for page in pages(wanted):
            for row in page:
                yield [row]

    async def fail_later(ids: Collection[int], status: Status) -> set[int]:
        if discarded:
            raise DatabaseUnavailable("database is locked")
        discarded.update(await discard(ids, status))
        return discarded

    monkeypatch.setattr(served.table, "pages", row_by_row)
    monkeypatch.setattr(served.table, "discard", fail_later)
    wanted = {"filter": {"status": "FAILED"}, "dry_run": False, "actor": "Ada"}
    status, answer = await served.ask("/fallback/discard", wanted)
    assert (status, answer["changed"]) == (200, 1)
    assert answer["text"].startswith("1 rows were discarded, then ")
    assert "database is locked" in answer["text"]
    (entry,) = await served.audit.latest(10)
    assert (entry.action, entry.changed) == ("rows discarded", 1)
    assert "database is locked" in entry.detail


async def test_rows_that_are_requeued_meanwhile_are_not_discarded(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two persons who work the same rows at once, the first decides."""
    pages = served.table.pages

    async def requeued_meanwhile(wanted: RowFilter) -> AsyncIterator[list[FallbackRow]]:
        async for page in pages(wanted):
            await served.table.requeue([page[0].id])
            yield page

    monkeypatch.setattr(served.table, "pages", requeued_meanwhile)
    wanted = {"filter": {"status": "FAILED"}, "dry_run": False, "actor": "Bob"}
    status, answer = await served.ask("/fallback/discard", wanted)
    assert (status, answer["changed"]) == (200, 1)
    assert "1 were left: their status allows it no more" in answer["text"]
    assert await served.table.count(RowFilter(status=Status.PENDING)) == 2  # one was so before


async def test_rows_that_were_requeued_since_the_page_was_shown(served: Served) -> None:
    """They are not discarded: the page names them with the status that it shows."""
    failed = {row.id for row in await served.table.find(RowFilter(status=Status.FAILED))}
    again, *others = failed
    await served.table.requeue([again])
    wanted = {"positions": [f"{one}:FAILED" for one in failed], "dry_run": False, "actor": "Bob"}
    _, answer = await served.ask("/fallback/discard", wanted)
    assert answer["changed"] == len(others)
    assert [row.status for row in await served.table.find(RowFilter(ids=failed))] == ["PENDING"]


async def test_another_worker_may_pause_by_its_signature_only(served: Served) -> None:
    """A signature is for one path and one minute, without the token."""
    path = "/here/pause?consumer=order_logging"
    headers = served.access.sign(path)
    assert TOKEN not in str(headers)
    assert (await served.ask(path, None, headers))[0] == 200
    assert served.paused == [True]
    old = served.access.sign(path)
    moment, _, signature = old[SIGNATURE_HEADER].partition(":")
    wrong = signature[:-1] + ("1" if signature.endswith("0") else "0")
    for value in (
        f"{int(moment) - 3600}:{signature}", f"{moment}:{wrong}", "", ":", "x:y",
        f"{'9' * 400}:{signature}",
    ):  # fmt: skip
        status, _ = await served.ask(path, None, {SIGNATURE_HEADER: value})
        assert status == 403, value
    assert (await served.ask("/here/resume?consumer=order_logging", None, old))[0] == 403
    assert (await served.ask(path, None, AUTHORIZED))[0] == 403
    assert served.paused == [True]
    assert await served.audit.paused() == {"order_logging"}
    assert time.time() - int(moment) < 60


async def test_without_a_token_another_worker_on_this_machine_may_pause(served: Served) -> None:
    """As a person there may; a page of another site may not."""
    served.access._token = None
    path = "/here/pause?consumer=order_logging"
    for header in ({"Origin": "http://evil.test"}, {"X-Forwarded-For": "192.0.2.1"}):
        assert (await served.ask(path, None, header))[0] == 403
    assert served.paused == []
    assert (await served.ask(path, None, served.access.sign(path)))[0] == 200
    assert served.paused == [True]


async def test_a_paused_consumer_has_no_probes(served: Served) -> None:
    """The answer says that nothing is sent until the consumer is resumed."""
    body = {"consumer": "order_logging", "dry_run": False, "actor": "Ada"}
    assert (await served.ask("/consumers/probe", body))[0] == 200
    await served.ask("/consumers/pause", body)
    status, answer = await served.ask("/consumers/probe", body)
    assert (status, answer["error"]) == (
        400, "order_logging is paused, nothing is sent: resume it first",
    )  # fmt: skip
    assert [entry.action for entry in await served.audit.latest(9)] == [
        "consumer: pause", "consumer: probe",
    ]  # fmt: skip


async def test_a_pause_that_is_not_saved_is_reported(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the database a restart ends the pause: the answer says so."""

    async def refuse(entry: AuditEntry) -> None:
        raise DatabaseUnavailable("the database refused")

    body = {"consumer": "order_logging", "dry_run": False, "actor": "Ada"}
    _, answer = await served.ask("/consumers/pause", body)
    assert "database" not in answer["text"]
    monkeypatch.setattr(served.audit, "write", refuse)
    status, answer = await served.ask("/consumers/pause", body)
    assert status == 200
    assert "a worker that starts later does not know it" in answer["text"]
    assert served.paused == [True, True]


async def test_a_pause_that_one_worker_did_not_get_is_reported(served: Served) -> None:
    """The answer names the worker, and so does the audit log."""
    served.members = {"order_logging": {"http://127.0.0.1:9/"}}
    status, answer = await served.ask(
        "/consumers/pause", {"consumer": "order_logging", "dry_run": False, "actor": "Ada"}
    )
    assert status == 200
    assert "not everywhere: http://127.0.0.1:9/" in answer["text"]
    assert served.paused == [True]
    (entry,) = await served.audit.latest(1)
    assert "http://127.0.0.1:9/" in entry.detail


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (403, b'{"error": "this is for other workers"}', "status 403: this is for other workers"),
        (404, b'{"error": "no such consumer here"}', "status 404: no such consumer here"),
        (403, b"<html>", "status 403"),
        (403, b"[]", "status 403"),
        (403, b'{"error": 7}', "status 403"),
        (500, b'{"error": "' + b"x" * 100_000 + b'"}', "status 500"),
    ],
)
async def test_why_another_worker_refused_a_pause(
    served: Served, status: int, body: bytes, told: str
) -> None:
    """The answer has the other worker's reason, if another program does not answer there."""
    head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n"
    async with RawServer(head.encode() + body) as other:
        served.members = {"order_logging": {f"{other.url}/"}}
        _, answer = await served.ask(
            "/consumers/pause", {"consumer": "order_logging", "dry_run": False, "actor": "Ada"}
        )
    assert answer["text"].endswith(f"not everywhere: {other.url}/: {told}")
