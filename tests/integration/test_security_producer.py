"""The producer with access tokens, while the identity provider is down."""

import asyncio
from collections.abc import Iterator

import pytest

from order_relay.errors import KafkaUnavailable, PublishRefused
from order_relay.kafka.auth import TokenProvider, faust_credentials
from order_relay.kafka.client_config import client_config
from order_relay.kafka.producer import KafkaProducer
from order_relay.settings import Settings, load_settings
from tests.support.identity_provider import IdentityProvider
from tests.support.waiting import eventually

SECRET = "hunter2"


@pytest.fixture
def provider() -> Iterator[IdentityProvider]:
    """A provider that is not started."""
    made = IdentityProvider({"relay": SECRET})
    yield made
    made.stop()


@pytest.fixture
def settings(provider: IdentityProvider) -> Settings:
    """Settings for the provider, and for missing brokers."""
    return load_settings(
        kafka_bootstrap_servers="127.0.0.1:1",
        kafka_security_protocol="SASL_PLAINTEXT",
        kafka_sasl_mechanism="OAUTHBEARER",
        kafka_sasl_oauth_token_url=provider.url,
        kafka_sasl_oauth_client_id="relay",
        kafka_sasl_oauth_client_secret=SECRET,
        kafka_sasl_oauth_extensions="logicalCluster=lkc-1, pool=p-1",
    )


async def test_the_producer_starts_without_a_token(
    provider: IdentityProvider, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """The producer starts while the provider is down; without a token nothing is sent."""
    producer = KafkaProducer(settings)
    await producer.start()
    with pytest.raises(PublishRefused, match="no access token from KAFKA_SASL_OAUTH_TOKEN_URL"):
        await producer.send("topic", key=b"1", value=b"{}")
    with pytest.raises(KafkaUnavailable, match="no access token from KAFKA_SASL_OAUTH_TOKEN_URL"):
        await producer.ping(0.1)

    provider.start()

    async def has_begun() -> bool:
        try:
            await producer.ping(0.1)
        except KafkaUnavailable as error:
            return "no access token" not in str(error)  # now only the brokers are missing
        return True

    await eventually(has_begun, 30, lambda: "the producer does not begin")
    await producer.stop()
    assert len([line for line in caplog.records if "No record is published yet" in line.msg]) == 1


async def test_a_producer_without_a_token_can_be_stopped(settings: Settings) -> None:
    """Stopping does not wait for the provider."""
    producer = KafkaProducer(settings)
    await producer.start()
    async with asyncio.timeout(5):
        await producer.stop()


async def test_both_clients_get_the_same_token(
    provider: IdentityProvider, settings: Settings
) -> None:
    """One token for librdkafka and for aiokafka, with the same extensions."""
    provider.start()
    token, expires_at, _, extensions = client_config(settings)["oauth_cb"]("")
    credentials = faust_credentials(settings)
    assert credentials is not None
    of_consumer = credentials.oauth_cb  # type: ignore[attr-defined]

    assert isinstance(of_consumer, TokenProvider)
    assert await of_consumer.token() == token
    assert of_consumer.extensions() == extensions == {"logicalCluster": "lkc-1", "pool": "p-1"}
    assert expires_at > 0
    assert provider.tokens == [token]
