"""docker-compose.yml, checked without a container engine."""

import re

import pytest
import yaml
from yarl import URL

from order_relay.settings import Settings, load_settings
from order_relay.worker.relay_app import SHUTDOWN_TAIL_SECONDS
from tests.support.child import run
from tests.support.compose import FILE, ROOT, Compose
from tests.support.kafka.distribution import kafka_version

SECRETS_FOLDER = "/run/secrets/"
WORKERS_AT_MOST = 32
OUR_IMAGE = "order-relay:"
PORTS = {
    "kafka-1": "19092", "kafka-2": "29092", "kafka-3": "39092", "kafka-ui": "8081",
    "sample-logger": "3000", "prometheus": "9090", "alertmanager": "9093", "grafana": "3001",
}  # fmt: skip


@pytest.fixture(scope="module")
def compose() -> Compose:
    """The file."""
    return Compose()


def test_it_is_a_compose_file() -> None:
    """The file matches the schema of the Compose specification."""
    schema = ("--builtin-schema", "vendor.compose-spec")
    done = run("-m", "check_jsonschema", *schema, FILE)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_service_is_pinned_bounded_and_looked_after(compose: Compose) -> None:
    """Image, memory, CPU, logs and rights are limited; it restarts, and has a health check."""
    for name, service in compose.services.items():
        ours = service["image"].startswith(OUR_IMAGE)
        assert ours or re.search(r":v?\d+\.\d+[\w.-]*$", service["image"]), name
        limits = service["deploy"]["resources"]["limits"]
        assert re.fullmatch(r"\d+[mg]", limits["memory"]), name
        assert 0 < float(limits["cpus"]) <= 1, name
        assert "no-new-privileges:true" in service["security_opt"]
        assert service["restart"] == "unless-stopped", name
        assert {"max-size", "max-file"} <= service["logging"]["options"].keys(), name
        # The worker's health check is in the Dockerfile.
        if name not in ("worker", "sample-shop"):
            assert service["healthcheck"]["test"][0] == "CMD", name
    # The Kafka that the tests run.
    assert {compose.services[broker]["image"] for broker in compose.brokers} == {
        f"apache/kafka:{kafka_version()}"
    }


def test_each_image_is_built_once(compose: Compose) -> None:
    """Only one service builds our image: parallel builds of one tag would race."""
    built = [service["image"] for service in compose.services.values() if "build" in service]
    assert len(built) == 1
    assert built[0].startswith(OUR_IMAGE)
    assert "build" in compose.services["worker"]


def test_only_this_machine_reaches_it(compose: Compose) -> None:
    """Published ports are on loopback, distinct, and the expected ones."""
    published = {
        name: ports[0][1] for name in compose.services if (ports := compose.published(name))
    }
    assert {address for name in published for address, _, _ in compose.published(name)} == {
        "127.0.0.1"
    }
    workers = published.pop("worker")
    assert published == PORTS
    first, last = (int(port) for port in workers.split("-"))
    assert last - first + 1 == WORKERS_AT_MOST
    assert not [port for port in published.values() if first <= int(port) <= last]


def test_there_can_be_many_workers(compose: Compose) -> None:
    """A worker has no fixed name, no single port and no shared volume."""
    worker = compose.services["worker"]
    assert not {"container_name", "hostname", "network_mode"} & worker.keys()
    assert "ADVERTISED_URL" not in compose.environment("worker")
    assert [volume for volume in worker["volumes"] if ":" in volume] == []


def test_the_number_of_workers_lasts(compose: Compose) -> None:
    """It is a variable in .env, since every ``up`` applies the file again."""
    assert "scale: ${RELAY_WORKERS:-1}" in FILE.read_text(encoding="utf-8")
    assert compose.services["worker"]["scale"] == 1
    assert "replicas" not in compose.services["worker"]["deploy"]


def test_settings_of_the_worker_are_settings(
    compose: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each variable is a setting or a secret's file; together they are valid."""
    secrets = {
        name.upper()
        for name, field in Settings.model_fields.items()
        if "SecretStr" in str(field.annotation)
    }
    for service in ("worker", "sample-shop"):
        for name, value in compose.environment(service).items():
            if name.endswith("_FILE") and value.startswith(SECRETS_FOLDER):
                assert name.removesuffix("_FILE") in secrets, name
                secret = value.removeprefix(SECRETS_FOLDER)
                assert secret in compose.services[service]["secrets"]
                monkeypatch.setenv(name, str(compose.secrets[secret]))
            else:
                assert name.lower() in Settings.model_fields, name
                monkeypatch.setenv(name, value)
    settings = load_settings()
    assert settings.api_token is not None
    assert settings.database_url.get_secret_value().startswith("postgresql+asyncpg://")


def test_the_database_takes_the_workers_password(compose: Compose) -> None:
    """The workers' URL has the user, password and database of the server."""
    server = compose.environment("postgres")
    password = compose.secrets["postgres_password"].read_text(encoding="utf-8")
    assert compose.secrets["database_url"].read_text(encoding="utf-8") == (
        f"postgresql+asyncpg://{server['POSTGRES_USER']}:{password}@postgres:5432/"
        f"{server['POSTGRES_DB']}"
    )


def test_no_secret_is_in_the_file(compose: Compose) -> None:
    """Secrets are files, and the sample values say "not-a-secret"."""
    text = FILE.read_text(encoding="utf-8")
    for path in compose.secrets.values():
        secret = path.read_text(encoding="utf-8")
        assert "not-a-secret" in secret
        assert secret not in text


def test_a_worker_has_time_to_stop(compose: Compose) -> None:
    """The stop grace is longer than the worker's own deadlines."""
    grace = float(compose.environment("worker")["SHUTDOWN_GRACE_SECONDS"])
    allowed = re.fullmatch(r"(\d+)s", compose.services["worker"]["stop_grace_period"])
    assert allowed
    assert int(allowed[1]) > grace + SHUTDOWN_TAIL_SECONDS
    assert compose.services["worker"]["init"] is True


def test_our_containers_can_do_little(compose: Compose) -> None:
    """Containers are read-only and without capabilities; data has its own volume."""
    ours = [
        service for service in compose.services.values() if service["image"].startswith(OUR_IMAGE)
    ]
    assert len(ours) == 4
    for service in ours:
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert [mount.partition(":")[0] for mount in service["tmpfs"]] == ["/tmp"]  # noqa: S108
        assert not {"cap_add", "privileged", "user"} & service.keys()
    assert compose.environment("worker")["DATA_DIR"] in compose.services["worker"]["volumes"]


def test_services_start_in_order(compose: Compose) -> None:
    """Awaited services have health checks; workers wait for all brokers and PostgreSQL."""
    for name, service in compose.services.items():
        for other, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert "test" in compose.services[other]["healthcheck"], (name, other)
    healthy = {
        other
        for other, how in compose.services["worker"]["depends_on"].items()
        if how["condition"] == "service_healthy"
    }
    assert healthy == {*compose.brokers, "postgres"}


def test_what_is_mounted_is_there(compose: Compose) -> None:
    """Mounted files exist, are read-only, and are where the program looks for them."""
    for name in compose.services:
        for here, there, options in compose.bind_mounts(name):
            assert here.exists(), here
            assert options == "ro", there
    folders = {there: here for here, there, _ in compose.bind_mounts("prometheus")}
    (config,) = (
        argument.removeprefix("--config.file=")
        for argument in compose.services["prometheus"]["command"]
        if argument.startswith("--config.file=")
    )
    folder, _, file = config.rpartition("/")
    assert (folders[folder] / file).is_file()
    folders = {there: here for here, there, _ in compose.bind_mounts("grafana")}
    provisioning = folders["/etc/grafana/provisioning"]
    for source in provisioning.glob("dashboards/*.yml"):
        for provider in yaml.safe_load(source.read_text(encoding="utf-8"))["providers"]:
            assert list(folders[provider["options"]["path"]].glob("*.json"))
    for source in provisioning.glob("datasources/*.yml"):
        for origin in yaml.safe_load(source.read_text(encoding="utf-8"))["datasources"]:
            assert URL(origin["url"]).host in compose.services


def test_brokers_differ_only_where_they_must(compose: Compose) -> None:
    """Their settings differ only in id and addresses."""
    environments = [compose.environment(broker) for broker in compose.brokers]
    assert len(environments) == 3
    different = {
        name
        for name in environments[0]
        if len({environment[name] for environment in environments}) > 1
    }
    assert different == {"KAFKA_NODE_ID", "KAFKA_LISTENERS", "KAFKA_ADVERTISED_LISTENERS"}
    for broker in compose.brokers:
        outside = compose.published(broker)[0][1]
        assert f"HOST://localhost:{outside}" in str(compose.environment(broker))
        assert compose.published(broker)[0][2] == outside


def test_the_defaults_reach_the_published_brokers(compose: Compose) -> None:
    """A worker on the host finds the brokers of the file without settings."""
    published = [f"localhost:{compose.published(broker)[0][1]}" for broker in compose.brokers]
    assert Settings.model_fields["kafka_bootstrap_servers"].default == ",".join(published)


def test_what_prometheus_scrapes_is_there(compose: Compose) -> None:
    """Each target is a service and its port; alerts go to Alertmanager."""
    config = yaml.safe_load((ROOT / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    targets = {
        job["job_name"]: target
        for job in config["scrape_configs"]
        for group in job.get("static_configs", [])
        for target in group["targets"]
    }
    served = {
        "prometheus": "localhost:9090", "alertmanager": "alertmanager:9093",
        "kafka": "kafka-exporter:9308", "postgres": "postgres-exporter:9187",
    }  # fmt: skip
    assert targets == served
    for target in served.values():
        name, _, port = target.partition(":")
        service = compose.services["prometheus" if name == "localhost" else name]
        assert f"http://127.0.0.1:{port}/" in service["healthcheck"]["test"][-1]
    (alertmanagers,) = config["alerting"]["alertmanagers"]
    assert alertmanagers["static_configs"] == [{"targets": [served["alertmanager"]]}]


def test_exporters_reach_what_they_export(compose: Compose) -> None:
    """They have the workers' brokers, and the database's name, user and password."""
    servers = compose.environment("worker")["KAFKA_BOOTSTRAP_SERVERS"].split(",")
    assert compose.services["kafka-exporter"]["command"] == [
        f"--kafka.server={server}" for server in servers
    ]
    asked = compose.environment("postgres-exporter")
    database = compose.environment("postgres")
    assert asked["DATA_SOURCE_USER"] == database["POSTGRES_USER"]
    assert asked["DATA_SOURCE_URI"].startswith(f"postgres:5432/{database['POSTGRES_DB']}?")
    assert asked["DATA_SOURCE_PASS_FILE"] == database["POSTGRES_PASSWORD_FILE"]


def test_alerts_reach_a_receiver(compose: Compose) -> None:
    """Alertmanager's routes name an existing receiver, which is a service of the file."""
    path = ROOT / "prometheus" / "alertmanager.yml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    (receiver,) = config["receivers"]
    routes = [config["route"], *config["route"]["routes"]]
    assert {route["receiver"] for route in routes} == {receiver["name"]}
    (webhook,) = receiver["webhook_configs"]
    url = URL(webhook["url"])
    assert url.host is not None
    assert (
        f"http://127.0.0.1:{url.port}/" in (compose.services[url.host]["healthcheck"]["test"][-1])
    )
    mounted = {here: there for here, there, _ in compose.bind_mounts("alertmanager")}
    assert f"--config.file={mounted[path]}" in compose.services["alertmanager"]["command"]


def test_the_alerts_can_be_others(compose: Compose) -> None:
    """A variable names the file of rules; ours is the default."""
    text = FILE.read_text(encoding="utf-8")
    assert "${RELAY_ALERTS:-./prometheus/alerts.yml}:/etc/prometheus/alerts.yml:ro" in text
    mounted = {there: here for here, there, _ in compose.bind_mounts("prometheus")}
    assert mounted["/etc/prometheus/alerts.yml"] == ROOT / "prometheus" / "alerts.yml"
