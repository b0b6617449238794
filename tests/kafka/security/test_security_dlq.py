"""``order-relay dlq …`` on brokers with TLS and SASL: each Kafka client authenticates."""

from pathlib import Path

import pytest

from tests.kafka.security.test_security_ways import WAYS
from tests.support.dead_letter_commands import letter, put_letters, relay_on
from tests.support.orders import order_value
from tests.support.secure_kafka import SecureKafka
from tests.support.stage import Stage


@pytest.mark.parametrize("way", ["SCRAM-SHA-512", "OAUTHBEARER", "certificate"])
async def test_letters_are_listed_redriven_and_purged(
    secure: SecureKafka, stage: Stage, tmp_path: Path, way: str
) -> None:
    """Commands work with the worker's settings."""
    for topic in (stage.topic, stage.dlq_topic):
        secure.kafka.create_topic(topic, 3)
    commands = relay_on(stage, tmp_path, **WAYS[way](secure))
    await put_letters(stage, [letter(n) for n in range(3)])
    assert len((await commands("dlq", "list", "--json")).objects) == 3
    assert "2 letters were redriven" in (await commands("dlq", "redrive", "0:0", "0:1")).out
    assert (
        "2 letters, 0 of them open: were deleted" in (await commands("dlq", "purge", "--yes")).out
    )
    (left,) = (await commands("dlq", "list", "--all", "--json")).objects
    assert (left["offset"], left["state"]) == (2, "open")
    assert len(await stage.records()) == 2


async def test_no_access_token_is_one_line(
    secure: SecureKafka, stage: Stage, tmp_path: Path
) -> None:
    """The line names the URL's setting."""
    commands = relay_on(stage, tmp_path, **secure.oauth())
    secure.provider.stop()
    try:
        line = (await commands("dlq", "list", statuses=(1,))).only_line
    finally:
        secure.provider.start()
    assert "no access token from KAFKA_SASL_OAUTH_TOKEN_URL=" in line


async def test_a_wrong_password_is_named(secure: SecureKafka, stage: Stage, tmp_path: Path) -> None:
    """As the worker names it; ``publish`` saves the event, and says why."""
    wrong = secure.password("SCRAM-SHA-512") | {"kafka_sasl_password": "hunter2"}
    commands = relay_on(stage, tmp_path, **wrong)
    (tmp_path / "orders").write_bytes(order_value(1))
    listed = await commands("dlq", "list", statuses=(1,))
    published = await commands("publish", str(tmp_path / "orders"))
    for text in (listed.only_line, published.err):
        assert "the brokers refuse KAFKA_SASL_USERNAME=relay and its KAFKA_SASL_PASSWORD" in text
        assert "hunter2" not in text
