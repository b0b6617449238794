"""The Kafka producer's configuration: the names and values of the design."""

import pytest
from confluent_kafka import Producer

from order_relay.kafka.client_config import client_config
from order_relay.kafka.producer import producer_config
from order_relay.settings import Settings, load_settings

pytestmark = pytest.mark.usefixtures("empty_environment")


def test_the_values_of_the_design() -> None:
    """By default the producer has the design's values under librdkafka's names."""
    config = producer_config(load_settings())

    assert (
        config
        | {
            "acks": "all",
            "enable.idempotence": True,
            "retries": 3,
            "retry.backoff.ms": 1000,
            "request.timeout.ms": 30_000,
            "delivery.timeout.ms": 120_000,
            "max.in.flight.requests.per.connection": 5,
        }
        == config
    )
    assert config["bootstrap.servers"] == "localhost:19092,localhost:29092,localhost:39092"
    assert config["security.protocol"] == "PLAINTEXT"
    # After 25 s without brokers, records were acknowledged 1.5 s after they came back; with
    # librdkafka's default of 10 s, after 10.8 s.
    assert config["reconnect.backoff.max.ms"] == 1000
    # As the Java clients place keys.
    assert config["partitioner"] == "murmur2_random"


def test_every_setting_arrives() -> None:
    """Each setting reaches librdkafka."""
    settings = load_settings(
        producer_retries=7,
        producer_retry_backoff_ms=2000,
        producer_request_timeout_ms=5000,
        producer_delivery_timeout_ms=60_000,
        producer_max_in_flight=1,
    )
    config = producer_config(settings)

    assert config["retries"] == 7
    assert config["retry.backoff.ms"] == 2000
    assert config["retry.backoff.max.ms"] >= 2000
    assert config["request.timeout.ms"] == 5000
    assert config["delivery.timeout.ms"] == 60_000
    assert config["max.in.flight.requests.per.connection"] == 1


def test_a_broker_that_hangs_is_left_after_the_request_timeout() -> None:
    """Its records go to the partition's next leader then, not after librdkafka's 60 s."""
    config = producer_config(load_settings())
    assert config["request.timeout.ms"] < config["socket.timeout.ms"] <= 35_000


def _bounds(name: str) -> list[int]:
    bounds: dict[str, int] = {}
    for rule in Settings.model_fields[name].metadata:
        bounds |= {kind: getattr(rule, kind) for kind in ("ge", "le") if hasattr(rule, kind)}
    return [bounds["ge"], bounds["le"]]


@pytest.mark.parametrize(
    "name", sorted(name for name in Settings.model_fields if name.startswith("producer_"))
)
def test_librdkafka_takes_what_the_settings_allow(name: str) -> None:
    """A producer can be made with the smallest and the largest allowed value."""
    for value in _bounds(name):
        config = producer_config(load_settings(**{name: value}))
        Producer(config | {"bootstrap.servers": "", "log_level": 0})


def test_credentials_for_sasl() -> None:
    """User, password and mechanism are given only if the protocol is SASL."""
    given = {
        "kafka_sasl_mechanism": "SCRAM-SHA-512",
        "kafka_sasl_username": "relay",
        "kafka_sasl_password": "hunter2",
    }
    sasl = client_config(load_settings(kafka_security_protocol="SASL_PLAINTEXT", **given))
    plain = client_config(load_settings(**given))

    assert {name: value for name, value in sasl.items() if name.startswith("sasl.")} == {
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": "relay",
        "sasl.password": "hunter2",
    }
    assert not [name for name in plain if name.startswith(("sasl.", "ssl."))]
