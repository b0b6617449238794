"""A worker cannot connect to brokers: one line says why, and names the setting."""

import logging
from pathlib import Path
from typing import Any

import pytest
import trustme
from confluent_kafka import Producer
from confluent_kafka.admin import (  # type: ignore[attr-defined] # documented, not re-exported
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from order_relay.kafka.topics import Topics
from tests.kafka.security.worker_log import check_length, check_secrets
from tests.support.dead_letter_commands import redriving, relay_on
from tests.support.kafka.ports import LOOPBACK
from tests.support.orders import order
from tests.support.secure_kafka import USER, SecureKafka
from tests.support.sink import ScriptedSink
from tests.support.stage import Stage
from tests.support.worker import WorkerProcess

SERVERS = "kafka_bootstrap_servers"
MISTAKES = {
    "authority": "certificate verify failed: unable to get local issuer certificate",
    "no authority": "See KAFKA_SSL_CA_FILE",
    "host name": "Hostname mismatch, certificate is not valid for 'localhost'",
    "password": "the brokers refuse KAFKA_SASL_USERNAME=relay and its KAFKA_SASL_PASSWORD",
    "SCRAM password": "the brokers refuse KAFKA_SASL_USERNAME=relay and its KAFKA_SASL_PASSWORD",
    "mechanism": "broker's supported mechanisms: SCRAM-SHA-512",
    "no TLS": "does KAFKA_SECURITY_PROTOCOL=SASL_PLAINTEXT suit their ports?",
    "no SASL": "does KAFKA_SECURITY_PROTOCOL=SSL suit their ports?",
    "TLS where there is none": "does KAFKA_SECURITY_PROTOCOL=SASL_SSL suit their ports?",
    "no certificate": "do they ask for a KAFKA_SSL_CERT_FILE?",
    "certificate of another authority": "do they ask for the right KAFKA_SSL_CERT_FILE?",
    "client secret": "answered 401 (invalid_client: not [redacted])",
    "authority of the provider": "certificate verify failed: unable to get local issuer",
    "no provider": "KAFKA_SASL_OAUTH_TOKEN_URL=https://127.0.0.1:1/: Connection refused",
}


def _mistaken(secure: SecureKafka, mistake: str) -> dict[str, Any]:
    plain, oauth, certificate = secure.password("PLAIN"), secure.oauth(), secure.certificate()
    cert, key = secure.client_certificate("strange", authority=trustme.CA())
    none = dict.fromkeys(("kafka_ssl_cert_file", "kafka_ssl_key_file", "kafka_ssl_key_password"))
    return {
        "authority": plain | {"kafka_ssl_ca_file": secure.secrets.other_ca_file},
        "no authority": plain | {"kafka_ssl_ca_file": None},
        "host name": plain | {SERVERS: plain[SERVERS].replace(LOOPBACK, "localhost")},
        "password": plain | {"kafka_sasl_password": "hunter2"},
        "SCRAM password": secure.password("SCRAM-SHA-512") | {"kafka_sasl_password": "hunter2"},
        "mechanism": plain | {SERVERS: secure.kafka.servers("SCRAM")},
        "no TLS": plain | {"kafka_security_protocol": "SASL_PLAINTEXT"},
        "no SASL": plain | {"kafka_security_protocol": "SSL"},
        "TLS where there is none": plain | {SERVERS: secure.kafka.bootstrap_servers},
        "no certificate": certificate | none,
        "certificate of another authority": certificate
        | none
        | {"kafka_ssl_cert_file": cert, "kafka_ssl_key_file": key},
        "client secret": oauth | {"kafka_sasl_oauth_client_secret": "hunter2"},
        "authority of the provider": oauth
        | {"kafka_sasl_oauth_ca_file": secure.secrets.other_ca_file},
        "no provider": oauth | {"kafka_sasl_oauth_token_url": "https://127.0.0.1:1/"},
    }[mistake]


@pytest.mark.parametrize("mistake", MISTAKES)
async def test_a_mistake_is_logged_once(
    secure: SecureKafka,
    stage: Stage,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    mistake: str,
) -> None:
    """Despite several tries, one line says what is wrong, without a secret."""
    monkeypatch.setattr("order_relay.kafka.topics.PROBE_SECONDS", 2.0)
    pauses = iter([False, False, True])

    async def pause(seconds: float) -> bool:
        return next(pauses)

    settings = stage.settings(**_mistaken(secure, mistake))
    with caplog.at_level(logging.INFO):
        assert not await Topics(settings).wait_until_ready(pause)

    (line,) = [one.getMessage() for one in caplog.records if one.name.startswith("order_relay.")]
    assert line.startswith("Kafka cannot be ")
    assert MISTAKES[mistake] in line
    assert line.endswith("; retrying until it works")
    assert "hunter2" not in line


@pytest.mark.parametrize("mistake", ["authority", "password", "no provider"])
async def test_a_worker_with_a_mistake_waits(
    secure: SecureKafka, stage: Stage, tmp_path: Path, mistake: str
) -> None:
    """The worker logs one line, is live but not ready, and stops with status 0."""
    settings = _mistaken(secure, mistake)
    async with WorkerProcess(tmp_path, stage, "http://127.0.0.1:1/", **settings) as worker:
        await worker.wait_log("retrying until it works")
        await worker.wait_until(worker.live, 30, "to be alive")
        assert not await worker.ready()
        assert await worker.stop() == 0
    (line,) = worker.log_lines("retrying until it works")
    assert MISTAKES[mistake] in line
    check_length(worker)
    check_secrets(worker, secure)


async def test_the_check_names_each_right_that_is_missing(
    secure: SecureKafka, stage: Stage, tmp_path: Path
) -> None:
    """For topics and groups: a necessary right fails the check, another one is a warning.

    A topic without the right to DESCRIBE is not reported as missing.
    """
    redrives = redriving(stage).group_id
    changelog = f"{stage.group_id}-deliveries-changelog"
    for topic in (stage.topic, stage.dlq_topic, changelog):
        secure.kafka.create_topic(topic)
    allow(secure, ResourceType.TOPIC, stage.topic, AclOperation.READ)
    allow(secure, ResourceType.TOPIC, stage.dlq_topic, AclOperation.WRITE)
    allow(secure, ResourceType.TOPIC, changelog, None)
    allow(secure, ResourceType.GROUP, stage.group_id, AclOperation.DESCRIBE)
    allow(secure, ResourceType.GROUP, redrives, None)
    commands = relay_on(stage, tmp_path, **secure.password("PLAIN"))

    told = (await commands("check", "--json", statuses=(1,))).objects
    found = {one["part"]: (one["result"], one["text"]) for one in told}
    whole = "3 partitions, replication 3; "
    assert found[f"topic {stage.topic}"] == ("warn", f"{whole}no right to DESCRIBE_CONFIGS")
    assert found[f"topic {stage.dlq_topic}"] == ("warn", f"{whole}no right to READ")
    assert found[f"topic {changelog}"] == ("FAIL", "no right to DESCRIBE")
    assert found[f"group {stage.group_id}"] == ("FAIL", "no right to READ")
    assert found[f"group {redrives}"] == ("warn", "no right to READ")


async def test_a_table_that_may_not_be_read_does_not_hold_up_orders(
    secure: SecureKafka, stage: Stage, tmp_path: Path
) -> None:
    """The worker logs it, and delivers without the old entries."""
    changelog = f"{stage.group_id}-deliveries-changelog"
    secure.kafka.create_topic(changelog)
    admin = Producer({"bootstrap.servers": secure.kafka.bootstrap_servers})
    for partition in range(3):
        admin.produce(changelog, b"an entry", b"0", partition)
    assert admin.flush(30) == 0
    allow(secure, ResourceType.TOPIC, changelog, AclOperation.WRITE)
    async with (
        ScriptedSink() as sink,
        WorkerProcess(tmp_path, stage, sink.url, **secure.password("PLAIN")) as worker,
    ):
        await worker.wait_ready()
        await stage.publish([order(1)])
        # The time-out for a changelog without answers is a minute.
        await sink.wait_for(lambda s: len(s.accepted) == 1, timeout=40)
        (line,) = worker.log_lines("its changelog cannot be read")
        assert "authorization failed" in line


def allow(
    secure: SecureKafka, kind: ResourceType, name: str, operation: AclOperation | None
) -> None:
    """Restrict the user to one operation on a topic or a group, or to none."""
    binding = AclBinding(
        kind,
        name,
        ResourcePatternType.LITERAL,
        f"User:{USER}",
        "*",
        operation or AclOperation.ALL,
        AclPermissionType.ALLOW if operation else AclPermissionType.DENY,
    )
    admin = AdminClient({"bootstrap.servers": secure.kafka.bootstrap_servers, "log_level": 0})
    admin.create_acls([binding])[binding].result(30)
