"""What stands in the head of a POST to the external logger, beside what it always has."""

from app.delivery.batches import LINES
from app.delivery.retry import Verdict
from tests.integration.http_client import BODY, client
from tests.support.sink import ScriptedSink


async def test_headers_of_ours_go_along(sink: ScriptedSink) -> None:
    """All of them with every post, in the place of the defaults where they have their names."""
    headers = (("X-Key", "a:b c"), ("user-agent", "shop"), ("X-Key", "second"), ("X-Empty", ""))
    async with client(sink.url, headers=headers, token="t0ken") as http:
        for _ in range(2):
            assert (await http.post(BODY, "key")).verdict is Verdict.SUCCESS
    for request in sink.requests:
        assert request.headers["x-key"] in ("a:b c", "second")
        assert request.headers["user-agent"] == "shop"
        assert request.headers["x-empty"] == ""
        assert request.headers["accept"] == "*/*"
        assert request.headers["authorization"] == "Bearer t0ken"
        assert (request.idempotency_key, request.body) == ("key", BODY)
    assert sink.connections == 1


async def test_a_content_type_of_ours_is_that_of_every_body(sink: ScriptedSink) -> None:
    """Without one it is what the body is."""
    async with client(sink.url, content_type="application/x.orders+json; v=2") as http:
        await http.post(BODY, "key")
        await http.post(BODY, "key", content_type=LINES)
    async with client(sink.url) as http:
        await http.post(BODY, "key")
        await http.post(BODY, "key", content_type=LINES)
    assert [request.headers["content-type"] for request in sink.requests] == [
        "application/x.orders+json; v=2",
        "application/x.orders+json; v=2",
        "application/json",
        LINES,
    ]
