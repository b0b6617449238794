"""However an answer is cut into packets, the client of the target reads the same."""

import pytest

from tests.integration.http_client import post, talking
from tests.support.raw_server import Peer

CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
# After these the connection is used again.
KEPT = {
    "200": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "200 body": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "201 no reason": b"HTTP/1.1 201\r\nContent-Length: 0\r\n\r\n",
    "204": b"HTTP/1.1 204 None\r\n\r\n",
    "200 chunks": b"HTTP/1.1 200 OK\r\n" + CHUNKED + b"2\r\nok\r\n0\r\n\r\n",
    "100 200": b"HTTP/1.1 100 Go\r\nA: b\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "103 103 422": b"HTTP/1.1 103 A\r\n\r\nHTTP/1.1 103 B\r\n\r\nHTTP/1.1 422 C\r\n"
    b"Content-Length: 2\r\n\r\nno",
    "302": b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n",
    "401": b"HTTP/1.1 401 Who\r\nContent-Length: 4\r\n\r\n who",
    "404": b"HTTP/1.1 404 Not\r\nContent-Length: 0\r\n\r\n",
    "422 umlaut": b"HTTP/1.1 422 No\r\nContent-Length: 6\r\n\r\n\xc3\xa4\xe2\x82\xac\xff",
    "422 chunks": b"HTTP/1.1 422 No\r\n" + CHUNKED + b'1;a="b"\r\nn\r\n1\r\no\r\n0\r\nA: b\r\n\r\n',
    "429": b"HTTP/1.1 429 Slow\r\nRetry-After: 17\r\nContent-Length: 4\r\n\r\nslow",
    "503 retry": b"HTTP/1.1 503 Busy\r\nretry-after:5 \r\nContent-Length: 0\r\n\r\n",
}
# With these it ends.
ENDED = {
    "200 close": b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nok",
    "200 HTTP/1.0": b"HTTP/1.0 200 OK\r\n\r\nok",
    "200 bad length": b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nok",
    "200 bad header": b"HTTP/1.1 200 OK\r\nX\r\n\r\nok",
    "200 bad chunk": b"HTTP/1.1 200 OK\r\n" + CHUNKED + b"x\r\n",
    "101": b"HTTP/1.1 101 Switch\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nxyz",
    "422 to the end": b"HTTP/1.1 422 No\r\n\r\nno",
    "503 bad chunk": b"HTTP/1.1 503 Busy\r\n" + CHUNKED + b"4\r\nbusy\r\nx\r\n",
    "500 broken off": b"HTTP/1.1 500 Bad\r\nContent-Length: 9\r\n\r\nbad",
    "500 bad header": b"HTTP/1.1 500 Bad\r\nRetry-After: 3\r\nX\r\n\r\n",
    "no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n",
    "bad status": b"HTTP/1.1 2000 OK\r\n\r\n",
    "bad version": b"HTTP/2 200\r\n\r\n",
    "half a line": b"HTTP/1.1 200 O",
}


def cuts(answer: bytes) -> list[list[bytes]]:
    """It in one packet, in two in each possible way, and byte by byte."""
    return [
        [answer],
        *([answer[:at], answer[at:]] for at in range(1, len(answer))),
        [bytes((byte,)) for byte in answer],
    ]


@pytest.mark.parametrize("name", KEPT | ENDED)
async def test_the_packets_of_an_answer_do_not_matter(name: str) -> None:
    """Cut anywhere, and byte by byte, an answer is what it is in one packet."""
    ways = cuts((KEPT | ENDED)[name])

    async def script(peer: Peer) -> None:
        while True:
            await peer.send(*ways[int((await peer.request()).key)])
            if name in ENDED:
                return

    async with talking(script) as (server, http):
        answers = [await post(http, str(way)) for way in range(len(ways))]
    assert answers == [answers[0]] * len(ways)
    assert len(server.peers) == (1 if name in KEPT else len(ways))
