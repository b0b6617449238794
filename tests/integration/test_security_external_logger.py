"""What a target sends back, and its certificate: nothing secret is passed on."""

import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from order_relay.delivery.answer import Answer
from order_relay.handlers.http import HttpHandler
from tests.support.embedded import EmbeddedKafka
from tests.support.kafka.ports import LOOPBACK
from tests.support.orders import order
from tests.support.raw_server import RawServer
from tests.support.sink import ScriptedSink
from tests.support.waiting import eventually
from tests.support.worker import WorkerProcess

TOKEN = "hunter2-token"


async def _post(url: str, redact: Callable[[str], str]) -> Answer:
    http = HttpHandler(
        url,
        timeout_seconds=5,
        connect_timeout_seconds=5,
        max_connections=1,
        token=TOKEN,
        redact=redact,
    )
    await http.start()
    try:
        return await http.post(b"{}", "key")
    finally:
        await http.stop()


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 2x0 hunter2-token\r\n\r\n",
        b"hunter2-token\r\n\r\n",
        b"HTTP/1.1 200hunter2-token\r\n\r\n",
        b"x" * 1020 + b"hunter2-token\r\n\r\n",
        b"HTTP/1.1 2000 hunter2-token\r\n\r\n",
        b"hunter2-token HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 400 hunter2-token\r\nContent-Length: 13\r\n\r\nhunter2-token",
    ],
)
async def test_an_answer_that_is_none_is_redacted(reply: bytes) -> None:
    """What comes in place of an answer is told as an error, without the token that is in it."""
    async with RawServer(reply) as server:
        answer = await _post(server.url, lambda text: text.replace(TOKEN, "[redacted]"))
    assert TOKEN[:4] not in repr(answer)
    assert answer.detail


@pytest.mark.parametrize("status", [200, 500])
@pytest.mark.parametrize("rest", [b"hunter2-token", b"Content-Length: hunter2-token"])
async def test_a_fault_behind_a_status_is_redacted(status: int, rest: bytes) -> None:
    """The status counts, and what is told of the rest has no token in it."""
    async with RawServer(b"HTTP/1.1 %d Status\r\n%s\r\n\r\n" % (status, rest)) as server:
        answer = await _post(server.url, lambda text: text.replace(TOKEN, "[redacted]"))
    assert answer.status == status
    assert TOKEN not in repr(answer)


async def test_a_wrong_certificate_is_an_outage(embedded: EmbeddedKafka, tmp_path: Path) -> None:
    """However long it lasts nothing is dead-lettered; the log says what it is, and it ends."""
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(LOOPBACK).configure_cert(context)
    other, right = tmp_path / "other.pem", tmp_path / "right.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    authority.cert_pem.write_to_path(str(right))
    stage = embedded.stage()
    await stage.publish([order(1)])
    async with ScriptedSink(tls=context) as sink:
        async with WorkerProcess(
            tmp_path,
            stage,
            sink.url,
            external_logger_ca_file=other,
            consumer_retry_max_attempts=0,
            breaker_failure_threshold=3,
        ) as worker:
            await worker.wait_log("Breaker open: the target fails")
            assert await worker.stop() == 0
        for line in worker.log_lines("Retrying message"):
            assert "certificate verify failed" in line
        assert not sink.requests
        assert not await stage.dead_letters()
        async with WorkerProcess(
            tmp_path, stage, sink.url, name="mended", external_logger_ca_file=right
        ) as mended:
            await eventually(lambda: sink.accepted, 60, lambda: "not delivered")
            assert await mended.stop() == 0
    assert "Traceback" not in worker.log_text()
