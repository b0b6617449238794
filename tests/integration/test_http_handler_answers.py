"""How the client of the target reads the bodies of answers."""

import gzip
import json

import pytest

from order_relay.delivery.answer import Verdict
from order_relay.delivery.batch_results import item_answers
from order_relay.handlers.http import MAX_KEPT_BODY_LENGTH
from tests.integration.http_client import BODY, client, patient_client, post, talking
from tests.support.raw_server import RawServer, replies
from tests.support.sink import Answer, Fault, ScriptedSink

TOKEN = "s3cret-token-of-ours"
CHUNKED = b"HTTP/1.1 422 No\r\nTransfer-Encoding: chunked\r\n\r\n"


async def test_the_body_of_an_error_is_kept_and_bounded(sink: ScriptedSink) -> None:
    """The text of an error answer is kept, up to a limit."""
    async with client(sink.url) as http:
        sink.fail_next(1, 422, body=b' {"error":"orderItems is empty"}\n')
        assert (await http.post(BODY, "key")).detail == '{"error":"orderItems is empty"}'
        sink.fail_next(1, 422, body=b"x" * 50_000)
        assert (await http.post(BODY, "key")).detail == "x" * MAX_KEPT_BODY_LENGTH
        sink.fail_next(1, 422, body=b"\xff\xfe not text")
        assert (await http.post(BODY, "key")).detail == "\ufffd\ufffd not text"
    assert sink.connections == 1


@pytest.mark.parametrize("status", [200, 201])
async def test_a_success_is_a_success_though_its_body_drips(
    sink: ScriptedSink, status: int
) -> None:
    """After a 2xx the body may be slower than the time-out: the record was accepted."""
    sink.fail_next(1, status, body=b"x" * 1000, drip_seconds=0.05)
    async with client(sink.url, timeout_seconds=0.3) as http:
        answer = await http.post(BODY, "key")
        assert (answer.verdict, answer.status) == (Verdict.SUCCESS, status)
        assert (await http.post(BODY, "key")).verdict is Verdict.SUCCESS


async def test_the_token_is_sent_and_kept_out_of_what_is_kept(sink: ScriptedSink) -> None:
    """The token is sent as Bearer, and redacted in the kept text of an answer."""
    sink.script = lambda request: Answer(
        403, body=f"denied: {request.headers['authorization']}".encode()
    )
    async with client(sink.url, token=TOKEN) as http:
        answer = await http.post(BODY, "key")
    assert sink.requests[0].headers["authorization"] == f"Bearer {TOKEN}"
    assert answer.detail == "denied: Bearer [redacted]"


@pytest.mark.parametrize(
    "answer",
    [
        CHUNKED + b"4\r\nno i\r\n4\r\ntems\r\n0\r\n\r\n",
        CHUNKED + b'4;a=b\r\nno i\r\n4;c="d;e"\r\ntems\r\n0;f\r\n\r\n',
        CHUNKED + b"8\r\nno items\r\n0\r\nX-Sum: 1\r\nRetry-After: 9\r\n\r\n",
        CHUNKED + b"0008\r\nno items\r\n000\r\n\r\n",
        b"HTTP/1.1 422 No\r\nContent-Length: 8\r\n\r\nno items",
        b"HTTP/1.1 422 No\r\ntransfer-encoding:\tChunked \r\n\r\n8\r\nno items\r\n0\r\n\r\n",
    ],
    ids=["chunks", "extensions", "trailers", "zeros", "length", "any case"],
)
async def test_a_body_in_any_framing(answer: bytes) -> None:
    """Any framing of a body is read, over one connection; trailers do not count as headers."""
    async with talking(replies(answer)) as (server, http):
        for _ in range(3):
            got = await post(http)
            assert (got.verdict, got.status, got.detail) == (Verdict.REJECTED, 422, "no items")
            assert got.retry_after_seconds == 0
    assert server.connections == [0, 0, 0]


async def test_a_token_in_chunks_is_redacted() -> None:
    """No part of a token remains, even if it comes in pieces across the end of the kept text."""
    body = b"x" * (MAX_KEPT_BODY_LENGTH - 12) + TOKEN.encode() + b"x" * 100
    chunks = b"".join(b"5\r\n%s\r\n" % body[at : at + 5] for at in range(0, len(body) - 5, 5))
    async with talking(CHUNKED + chunks + b"0\r\n\r\n", token=TOKEN) as (_, http):
        detail = (await post(http)).detail
    assert detail.startswith("x" * (MAX_KEPT_BODY_LENGTH - 12))
    assert len(detail) <= MAX_KEPT_BODY_LENGTH
    assert TOKEN[:6] not in detail


async def test_a_compressed_body_is_left_alone(sink: ScriptedSink) -> None:
    """The client does not ask for gzip, and keeps a gzip body as it comes."""
    compressed = gzip.compress(b"no items", mtime=0)
    sink.script = lambda request: Answer(422, headers={"Content-Encoding": "gzip"}, body=compressed)
    async with patient_client(sink.url) as http:
        answer = await post(http)
        assert answer.detail == compressed.decode("utf-8", "replace").strip()
        await post(http)
    assert "accept-encoding" not in sink.requests[0].headers
    assert sink.connections == 1


async def test_a_body_up_to_the_end_of_the_connection() -> None:
    """A body without a length lasts until the connection ends; the status and the text count."""
    async with talking(b"HTTP/1.1 422 No\r\nContent-Type: text/plain\r\n\r\nno items") as (
        server,
        http,
    ):
        for _ in range(2):
            answer = await post(http)
            assert (answer.verdict, answer.detail) == (Verdict.REJECTED, "no items")
    assert server.connections == [0, 1]


@pytest.mark.parametrize("secret", ["2", '"status":', "422", "reason"])
async def test_a_secret_in_results_does_not_change_them(sink: ScriptedSink, secret: str) -> None:
    """Results of single records are read before redaction; the kept texts have no secret."""
    said = json.dumps([{"status": 201}, {"status": 422, "error": f"reason: {secret}."}]).encode()
    sink.script = lambda request: Answer(207, body=said)
    async with client(sink.url, batch_size=2, token=secret) as http:
        found = item_answers(await http.post(BODY, "key"), 2, http.redact)
        unread = item_answers(await http.post(BODY, "key"), 3, http.redact)
    assert [one.status for one in found] == [201, 422]
    assert found[1].detail.endswith(": [redacted].")
    assert {secret in one.detail.removeprefix("207 ") for one in (*found, *unread)} == {False}


async def test_results_with_text_in_another_encoding_are_read(sink: ScriptedSink) -> None:
    """A rejected record among the results counts, even if its text is Latin-1."""
    sink.fail_next(1, 207, body=b'[{"status":201},{"status":422,"error":"caf\xe9"}]')
    async with client(sink.url, batch_size=2) as http:
        found = item_answers(await http.post(BODY, "key"), 2, http.redact)
    assert [(one.status, one.detail) for one in found] == [(201, ""), (422, "caf\ufffd")]


async def test_results_that_come_slowly_are_awaited(sink: ScriptedSink) -> None:
    """A target may send the head of a 2xx first, and the results while it handles the batch."""
    body = b'[{"status":201},{"status":500}]'
    sink.fail_next(1, 200, body=body, drip_seconds=0.05)  # too slow for other bodies
    async with client(sink.url, batch_size=2) as http:
        found = item_answers(await http.post(BODY, "key"), 2, http.redact)
    assert [one.status for one in found] == [201, 500]


async def test_results_that_do_not_arrive_are_no_success(sink: ScriptedSink) -> None:
    """If they are too slow or cut off, each record's result is unknown."""
    sink.fail_next(1, 200, body=b'[{"status":201},{"status":500}]', drip_seconds=0.2)
    sink.fail_next(1, 200, body=b'[{"status":201},{"status":500}]', fault=Fault.CUT)
    sink.fail_next(1, 200, body=b"", fault=Fault.CUT)
    sink.fail_next(1, 200, fault=Fault.ENDLESS)
    async with client(sink.url, batch_size=2, timeout_seconds=1.0) as http:
        for verdict in ("retryable", "retryable", "success", "success"):
            found = item_answers(await http.post(BODY, "key"), 2, http.redact)
            assert {one.verdict for one in found} == {verdict}


async def test_results_behind_a_malformed_head_are_read() -> None:
    """A record's own status counts, even if a header of the answer is invalid."""
    head = b"HTTP/1.1 200 OK\r\nX-Name: one\r\n two\r\nContent-Length: 31\r\n\r\n"
    async with talking(head + b'[{"status":201},{"status":500}]', batch_size=2) as (_, http):
        found = item_answers(await post(http), 2, http.redact)
    assert [one.status for one in found] == [201, 500]


async def test_results_of_many_records_are_read(sink: ScriptedSink) -> None:
    """Results of 10,000 records with texts exceed the limit of other answers."""
    said = [{"status": 422 if n == 9_999 else 201, "error": "x" * 100} for n in range(10_000)]
    sink.fail_next(1, 200, body=json.dumps(said).encode())
    async with client(sink.url, batch_size=2) as http:
        found = item_answers(await http.post(BODY, "key"), 10_000, http.redact)
    assert [one.status for one in found] == [one["status"] for one in said]


@pytest.mark.parametrize("body", [b"", b'[{"status":201},{"status":500}]'])
async def test_results_up_to_the_end_of_the_connection(body: bytes) -> None:
    """Without a length the results end with the connection, as in HTTP/1.0."""
    async with (
        RawServer(b"HTTP/1.0 200 OK\r\n\r\n" + body) as server,
        patient_client(server.url, batch_size=2) as http,
    ):
        answer = await post(http)
    assert (answer.body, answer.is_cut) == (body, False)
