"""Access tokens that expire while a worker runs, and a provider that is away."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kafka.security.worker_log import check_length, check_secrets
from tests.support.identity_provider import IdentityProvider
from tests.support.orders import order, order_value
from tests.support.secure_kafka import SecureKafka
from tests.support.sink import ScriptedSink
from tests.support.stage import Stage
from tests.support.waiting import eventually
from tests.support.worker import WorkerProcess

LIMIT_SECONDS = 90.0


@pytest.fixture
def short_lived(secure: SecureKafka) -> Iterator[SecureKafka]:
    """A cluster whose provider issues tokens for 10 seconds."""
    usual, secure.provider.lifetime_seconds = secure.provider.lifetime_seconds, 10.0
    yield secure
    secure.provider.lifetime_seconds = usual
    secure.provider.stop()
    secure.provider.start()


async def test_tokens_are_renewed_and_outages_of_the_provider_outlived(
    short_lived: SecureKafka, stage: Stage, tmp_path: Path
) -> None:
    """A worker starts without its provider; orders are delivered over tokens and a long outage."""
    provider = short_lived.provider
    before = len(provider.tokens)
    provider.stop()
    async with (
        ScriptedSink() as sink,
        WorkerProcess(tmp_path, stage, sink.url, **short_lived.oauth()) as worker,
    ):
        await worker.wait_log("no access token from KAFKA_SASL_OAUTH_TOKEN_URL=")
        provider.start()
        await worker.wait_ready()
        assert len(worker.log_lines("Kafka works at")) == 1
        for number in range(1, 5):
            await _renewed(provider, before + number)
            await stage.publish([order(number)])
            await _accepted(sink, number)
        assert (await worker.post_order(order_value(5)))[1]["status"] == "published"
        await _accepted(sink, 5)

        provider.stop()
        await worker.wait_log("Access token not renewed, the last one is kept")
        await worker.wait_log("Access token expired, Kafka will refuse us")
        await stage.publish([order(6)])
        provider.start()
        await worker.wait_log("Access token renewed again")
        await _accepted(sink, 6)
        await worker.wait_ready()
        # Saved if the worker still counts Kafka as down; then published from the table.
        assert (await worker.post_order(order_value(7)))[1]["status"] in ("published", "saved")
        await _accepted(sink, 7)
        assert await worker.stop() == 0
    check_length(worker)
    check_secrets(worker, short_lived)


async def _renewed(provider: IdentityProvider, tokens: int) -> None:
    await eventually(lambda: len(provider.tokens) >= tokens, LIMIT_SECONDS, lambda: "no new token")


async def _accepted(sink: ScriptedSink, count: int) -> None:
    await sink.wait_for(lambda s: len(s.accepted) == count, LIMIT_SECONDS)
