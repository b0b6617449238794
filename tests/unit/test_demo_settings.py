"""The worker's settings in the demo: the user's configuration is ignored."""

from __future__ import annotations

from pathlib import Path

import pytest

from demo.command_line import Options
from demo.worker import demo_settings, worker_environment
from order_relay.settings import Settings, load_settings

USERS = {
    "KAFKA_BOOTSTRAP_SERVERS": "kafka.example.com:9093", "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
    "EXTERNAL_LOGGER_TOKEN": "secret", "CONSUMER_RETRY_MAX_ATTEMPTS": "many", "max_in_flight": "1",
    "DATABASE_URL": "postgresql://orders.example.com/orders",
}  # fmt: skip
DATABASE = "sqlite+aiosqlite:////a/folder/shop.db"


def settings_at(servers: str, *others: str) -> Settings:
    """The demonstration's settings, with further consumers."""
    options = Options(logger_port=3001, web_port=7001, consumers=("order_logging", *others))
    return demo_settings(options, Path("/a/folder"), servers)


@pytest.fixture(params=["environment", ".env"])
def configured(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's settings for a real cluster, one of them wrong."""
    monkeypatch.chdir(tmp_path)
    if request.param == "environment":
        for name, value in USERS.items():
            monkeypatch.setenv(name, value)
    else:
        (tmp_path / ".env").write_text("".join(f"{name}={USERS[name]}\n" for name in USERS))


@pytest.mark.usefixtures("configured")
def test_environment_and_file_are_ignored() -> None:
    """The demonstration's settings are the defaults and its own."""
    settings = settings_at("127.0.0.1:1")
    assert settings.kafka_bootstrap_servers == "127.0.0.1:1"
    assert settings.kafka_security_protocol == "PLAINTEXT"
    assert settings.external_logger_url == "http://127.0.0.1:3001/logs"
    assert settings.external_logger_token is None
    assert settings.max_in_flight == Settings.model_fields["max_in_flight"].default
    assert not settings.kafka_declare_topics
    assert settings.database_url.get_secret_value() == DATABASE


def test_a_worker_reads_back_the_same_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment made for the worker gives it these settings and no others."""
    settings = settings_at("127.0.0.1:1,127.0.0.1:2")
    environment = worker_environment(settings, {})
    monkeypatch.chdir(tmp_path)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert load_settings().model_dump() == settings.model_dump()


def test_further_consumers_keep_variables_of_their_names() -> None:
    """Theirs are passed on, except the worker's settings; folders are for them only."""
    surroundings = {
        "COUPONS_URL": "http://127.0.0.1:4000/", "kafka_key": "k",
        "KAFKA_BOOTSTRAP_SERVERS": "elsewhere:9092", "ORDER_LOGGING_URL": "http://elsewhere/",
    }  # fmt: skip
    settings = settings_at("127.0.0.1:1", "coupons", "kafka")
    environment = worker_environment(settings, surroundings)
    assert environment["CONSUMERS"] == "order_logging,coupons,kafka"
    assert environment["COUPONS_URL"] == "http://127.0.0.1:4000/"
    assert environment["kafka_key"] == "k"
    assert environment["KAFKA_BOOTSTRAP_SERVERS"] == "127.0.0.1:1"
    assert "ORDER_LOGGING_URL" not in environment
    assert Path(environment["CONSUMER_FOLDERS"]).parts[-2:] == ("examples", "consumers")
    alone = worker_environment(settings_at("127.0.0.1:1"), surroundings)
    assert "CONSUMER_FOLDERS" not in alone
    assert "COUPONS_URL" not in alone


def test_only_what_a_process_needs_is_handed_on() -> None:
    """Settings of this project and of Faust stay out; paths, language and time zone stay in."""
    settings = settings_at("127.0.0.1:1")
    surroundings = USERS | {
        "BROKER_URL": "kafka://elsewhere", "APP_DATADIR": "/data", "FAUST_LOOP": "gevent",
        "PATH": "/usr/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC", "PYTHONPATH": "/else",
    }  # fmt: skip
    environment = worker_environment(settings, surroundings)
    assert {"BROKER_URL", "APP_DATADIR", "FAUST_LOOP", "max_in_flight"}.isdisjoint(environment)
    assert "EXTERNAL_LOGGER_TOKEN" not in environment
    assert environment["DATABASE_URL"] == DATABASE
    assert environment["PATH"] == "/usr/bin"
    assert environment["LC_ALL"] == "C.UTF-8"
    assert environment["TZ"] == "UTC"
    assert environment["CONSUMER_RETRY_MAX_ATTEMPTS"] == "3"
    project, rest = environment["PYTHONPATH"].split(":")
    assert (Path(project) / "demo").is_dir()
    assert rest == "/else"
