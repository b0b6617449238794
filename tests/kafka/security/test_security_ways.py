"""A worker on brokers with TLS and SASL works with every kind of authentication."""

from pathlib import Path
from typing import Any

import pytest

from tests.kafka.security.worker_log import check_length, check_secrets
from tests.support.orders import order, order_value
from tests.support.secure_kafka import SecureKafka
from tests.support.sink import Answer, ScriptedSink
from tests.support.stage import Stage
from tests.support.waiting import eventually
from tests.support.worker import WorkerProcess

LIMIT_SECONDS = 60.0
WAYS = {
    "PLAIN": lambda secure: secure.password("PLAIN"),
    "SCRAM-SHA-256": lambda secure: secure.password("SCRAM-SHA-256"),
    "SCRAM-SHA-512": lambda secure: secure.password("SCRAM-SHA-512"),
    "SCRAM without TLS": lambda secure: secure.password("SCRAM-SHA-512", "SASL_PLAINTEXT"),
    "OAUTHBEARER": lambda secure: secure.oauth(),
    "certificate": lambda secure: secure.certificate(),
    "certificate and key in one file": lambda secure: secure.certificate_with_key(),
}

LOG_EVERYTHING = ("PLAIN", "SCRAM-SHA-512", "OAUTHBEARER")


@pytest.mark.parametrize("way", WAYS)
async def test_a_worker_delivers_and_publishes(
    secure: SecureKafka, stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Orders are delivered, published over HTTP, dead-lettered and committed.

    The log has no secret, even with ``-l debug``.
    """
    if way in LOG_EVERYTHING:
        command = ("-m", "faust", "-A", "app", "worker", "-l", "debug")
        monkeypatch.setattr("tests.support.worker.COMMAND", command)
    settings: dict[str, Any] = WAYS[way](secure)
    async with ScriptedSink() as sink:
        sink.script = lambda request: Answer(422 if request.order_id == 2 else 200)
        async with WorkerProcess(tmp_path, stage, sink.url, **settings) as worker:
            await worker.wait_ready()  # it has declared the topics
            (delivered, _) = await stage.publish([order(1), order(2)])
            await sink.wait_for(lambda s: delivered.event_id in s.accepted_keys, LIMIT_SECONDS)
            assert (await worker.post_order(order_value(3)))[1]["status"] == "published"
            await sink.wait_for(lambda s: len(s.accepted) == 2, LIMIT_SECONDS)
            await eventually(stage.dead_letters, LIMIT_SECONDS, lambda: "no dead letter")
            await eventually(stage.all_committed, LIMIT_SECONDS, lambda: "not all committed")
            assert await worker.stop() == 0
    (dead,) = await stage.dead_letters()
    assert dead.key == b"2"
    if way in LOG_EVERYTHING:
        assert "DEBUG" in worker.log_text()
    else:
        check_length(worker)
    check_secrets(worker, secure)
