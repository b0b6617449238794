"""A worker on brokers with TLS and SASL works with every kind of authentication."""

import base64
from pathlib import Path
from typing import Any

import pytest

from tests.kafka.security.whole_way import hand_in, well_behaved
from tests.support.orders import order
from tests.support.secure_kafka import CLIENT_SECRET, PASSWORD, SecureKafka
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


@pytest.mark.parametrize("way", ["PLAIN", "SCRAM-SHA-512", "OAUTHBEARER"])
async def test_a_worker_that_logs_everything_shows_no_secret(
    secure: SecureKafka, stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Even with ``-l debug`` the log has neither password nor token."""
    command = ("-m", "faust", "-A", "app", "worker", "-l", "debug")
    monkeypatch.setattr("tests.support.worker.COMMAND", command)
    async with (
        ScriptedSink() as sink,
        WorkerProcess(tmp_path, stage, sink.url, **WAYS[way](secure)) as worker,
    ):
        await worker.wait_ready()
        await stage.publish([order(1)])
        await sink.wait_for(lambda s: len(s.accepted) == 1, LIMIT_SECONDS)
        assert (await hand_in(worker, 2))["status"] == "published"
        assert await worker.stop() == 0
    text = worker.log_text()
    assert "DEBUG" in text
    for secret in (PASSWORD, CLIENT_SECRET, *secure.provider.tokens):
        assert secret not in text
        assert base64.b64encode(secret.encode()).decode() not in text


@pytest.mark.parametrize("way", WAYS)
async def test_a_worker_delivers_and_publishes(
    secure: SecureKafka, stage: Stage, tmp_path: Path, way: str
) -> None:
    """Orders are delivered, published over HTTP, dead-lettered and committed."""
    settings: dict[str, Any] = WAYS[way](secure)
    async with ScriptedSink() as sink:
        sink.script = lambda request: Answer(422 if request.order_id == 2 else 200)
        async with WorkerProcess(tmp_path, stage, sink.url, **settings) as worker:
            await worker.wait_ready()  # it has declared the topics
            (delivered, _) = await stage.publish([order(1), order(2)])
            await sink.wait_for(lambda s: delivered.event_id in s.accepted_keys, LIMIT_SECONDS)
            assert (await hand_in(worker, 3))["status"] == "published"
            await sink.wait_for(lambda s: len(s.accepted) == 2, LIMIT_SECONDS)
            await eventually(stage.dead_letters, LIMIT_SECONDS, lambda: "no dead letter")
            await eventually(stage.all_committed, LIMIT_SECONDS, lambda: "not all committed")
            assert await worker.stop() == 0
    (dead,) = await stage.dead_letters()
    assert dead.key == b"2"
    well_behaved(worker)
