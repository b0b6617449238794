"""The Helm chart, rendered by Helm and checked against Kubernetes' schemas and the product."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import trustme

from grafana import links
from order_relay.settings import Settings, load_settings
from order_relay.settings.secret_files import secret_fields
from order_relay.worker.relay_app import SHUTDOWN_TAIL_SECONDS
from tests.support.alert_rules import relinked_groups
from tests.support.chart import (
    CHART,
    KUBERNETES,
    VALUES,
    Rendered,
    helm,
    notes_of,
    problem,
    template,
    unavailable_reason,
)
from tests.support.dashboard_panels import boards
from tests.support.dockerfile import Dockerfile

REASON = unavailable_reason()
CASES = [None, *(path.stem for path in sorted(VALUES.glob("*.yaml")))]
CONSUMERS = {None: ["order_logging"], "everything": ["order_logging", "coupons"]}
CONSUMERS["claim"] = ["order_logging", "notifications"]
SECRETS = Path("/run/secrets/relay")
CONSOLE = "https://relay.example.com"
RUNBOOK = "https://docs.example.com/how-to/runbook/"

pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case or "defaults")
def case(request: pytest.FixtureRequest) -> tuple[str | None, Rendered]:
    """The name of a values file, and its rendered resources."""
    return request.param, Rendered(request.param)


def _container(pod: dict[str, Any]) -> dict[str, Any]:
    (container,) = pod["containers"]
    return dict(container)


def test_it_passes_helms_own_check() -> None:
    """Helm lint has no warnings for any values file."""
    for values in CASES:
        chosen = ("--values", VALUES / f"{values}.yaml") if values else ()
        done = helm("lint", CHART, "--strict", *chosen)
        assert done.returncode == 0, done.stdout
        assert "[WARNING]" not in done.stdout, done.stdout


@pytest.mark.parametrize("kubernetes", KUBERNETES)
@pytest.mark.parametrize("values", CASES, ids=lambda case: case or "defaults")
def test_kubernetes_would_take_it(values: str | None, kubernetes: str) -> None:
    """Each resource matches its schema, in which unknown fields are errors."""
    resources = Rendered(values, kubernetes).resources
    assert {one["kind"]: found for one in resources if (found := problem(one, kubernetes))} == {}
    names = [(one["kind"], one["metadata"]["name"]) for one in resources]
    assert len(set(names)) == len(names)


def test_each_consumer_has_workers_of_its_own(case: tuple[str | None, Rendered]) -> None:
    """Each consumer has a workload whose selector matches its own pods only."""
    values, rendered = case
    kind = "StatefulSet" if values == "claim" else "Deployment"
    assert len(rendered.all(kind)) == len(CONSUMERS[values])
    for name in CONSUMERS[values]:
        workload = rendered.workload(name)
        assert rendered.environment(name)["CONSUMERS"] == name
        labels = workload["spec"]["template"]["metadata"]["labels"]
        selector = workload["spec"]["selector"]["matchLabels"]
        assert selector.items() <= labels.items()
        assert selector["app.kubernetes.io/component"] == name
        service = rendered.one("Service")["spec"]
        assert service["selector"].items() <= labels.items()
        assert service["publishNotReadyAddresses"] is True


def test_settings_are_valid(
    case: tuple[str | None, Rendered], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker accepts the chart's environment, with secrets as files."""
    values, rendered = case
    secrets = {name.upper() for name in secret_fields(Settings)}
    for consumer in CONSUMERS[values]:
        with monkeypatch.context() as patch:
            for name, value in rendered.environment(consumer).items():
                if name == "POD_IP":
                    continue
                given = value.replace("$(POD_IP)", "fd00::7" if values == "claim" else "10.0.0.1")
                if name.endswith("_FILE") and value.startswith(str(SECRETS)):
                    assert name.removesuffix("_FILE") in secrets
                    given = str(tmp_path / Path(value).name)
                    Path(given).write_text("postgresql+asyncpg://relay:made-up@db/relay")
                elif name.endswith("_FILE"):
                    given = str(tmp_path / Path(value).name)
                    trustme.CA().cert_pem.write_to_path(given)
                assert (
                    name.removesuffix("_FILE") in secrets or name.lower() in Settings.model_fields
                )
                patch.setenv(name, given)
            settings = load_settings()
            assert settings.consumers == consumer
            if values == "claim":
                assert str(settings.own_url) == "http://[fd00::7]:6066"
                assert settings.web_host == "::"
            assert settings.database_url.get_secret_value().startswith("postgresql+asyncpg://")
            if (values, consumer) == ("everything", "order_logging"):
                assert settings.kafka_session_timeout_ms == 1_800_000


def test_each_secret_is_a_mounted_file(case: tuple[str | None, Rendered]) -> None:
    """Settings name exactly the files of the mounted volume, which come from Secrets."""
    values, rendered = case
    for consumer in CONSUMERS[values]:
        pod = rendered.pod(consumer)
        (volume,) = (one["projected"] for one in pod["volumes"] if one["name"] == "secrets")
        sources = [source["secret"] for source in volume["sources"]]
        files_there = {str(SECRETS / item["path"]) for one in sources for item in one["items"]}
        environment = rendered.environment(consumer)
        named = {value for value in environment.values() if value.startswith(str(SECRETS))}
        assert named == files_there
        own = {one["metadata"]["name"]: one["stringData"] for one in rendered.all("Secret")}
        for source in sources:
            if source["name"] in own:
                assert {item["key"] for item in source["items"]} <= own[source["name"]].keys()
    if values == "everything":
        text = json.dumps([one for one in rendered.resources if one["kind"] != "Secret"])
        assert "made-up" not in text


def test_a_worker_has_time_to_stop(case: tuple[str | None, Rendered]) -> None:
    """The pod's grace period is longer than the worker's own deadlines."""
    values, rendered = case
    for consumer in CONSUMERS[values]:
        grace = float(rendered.environment(consumer)["SHUTDOWN_GRACE_SECONDS"])
        allowed = rendered.pod(consumer)["terminationGracePeriodSeconds"]
        assert allowed == math.ceil(grace) + 30
        assert allowed > grace + SHUTDOWN_TAIL_SECONDS


def test_workers_can_do_little(case: tuple[str | None, Rendered]) -> None:
    """The image's user, a read-only root, no capabilities, no access to Kubernetes."""
    values, rendered = case
    user = int(Dockerfile().last("USER").rest.partition(":")[0])
    for consumer in CONSUMERS[values]:
        pod = rendered.pod(consumer)
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == user
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        container = _container(pod)
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        writable = {
            mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")
        }
        assert writable == {rendered.environment(consumer)["DATA_DIR"], "/tmp"}  # noqa: S108
        assert "cpu" not in container["resources"]["limits"]
        live, ready = container["livenessProbe"], container["readinessProbe"]
        assert live["httpGet"]["path"] == container["startupProbe"]["httpGet"]["path"]
        assert (live["httpGet"]["path"], ready["httpGet"]["path"]) == (
            "/health/live", "/health/ready",
        )  # fmt: skip


def test_stores_outlive_a_pod_where_claims_are_asked_for() -> None:
    """Each pod of a StatefulSet has a claim of its own; a Deployment has an emptyDir."""
    claim = Rendered("claim").workload("order_logging")["spec"]
    (volume,) = claim["volumeClaimTemplates"]
    assert volume["metadata"]["name"] == "state"
    assert volume["spec"]["resources"]["requests"]["storage"] == "20Gi"
    assert [one["name"] for one in claim["template"]["spec"]["volumes"]] == ["tmp", "secrets"]
    state = Rendered(None).pod("order_logging")["volumes"][0]
    assert state == {"name": "state", "emptyDir": {"sizeLimit": "2Gi"}}


def test_spare_workers_hold_up_neither_rollouts_nor_drains(tmp_path: Path) -> None:
    """Spare workers are never ready: rollouts and budgets allow for them; notes mention them."""
    rendered = Rendered("everything")
    rollout = rendered.workload("coupons")["spec"]["strategy"]["rollingUpdate"]
    assert rollout == {"maxSurge": 1, "maxUnavailable": 3}
    budgets = {
        one["metadata"]["name"]: one["spec"]["maxUnavailable"]
        for one in rendered.all("PodDisruptionBudget")
    }
    assert budgets == {"relay-order-logging": 1, "relay-coupons": 3}
    notes = notes_of("everything", tmp_path)
    assert "coupons has 5 replicas for 3 partitions: 2 of them are spare" in notes
    assert "create secret generic my-kafka-user --from-file=password" in notes
    assert "port-forward service/relay 6066" in notes


def test_lag_scales_up_to_the_partitions() -> None:
    """KEDA reads the consumer's topic and group, and alone sets the replicas."""
    rendered = Rendered("everything")
    spec = rendered.one("ScaledObject")["spec"]
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (2, 12)
    assert spec["scaleTargetRef"]["name"] == "relay-order-logging"
    (trigger,) = spec["triggers"]
    assert trigger["metadata"]["topic"] == Settings.model_fields["order_paid_topic"].default
    group = Settings.model_fields["consumer_group_id"].default
    assert trigger["metadata"]["consumerGroup"] == group
    assert trigger["metadata"]["lagThreshold"] == "2000000"
    assert "replicas" not in rendered.workload("order_logging")["spec"]
    assert rendered.workload("coupons")["spec"]["replicas"] == 5


def test_prometheus_finds_workers_and_rules() -> None:
    """The job has the name in the alerts; the rules are ours, with links and objective set."""
    rendered = Rendered("everything")
    monitor = rendered.one("ServiceMonitor")
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["relabelings"] == [{"targetLabel": "job", "replacement": "order-relay"}]
    (port,) = rendered.one("Service")["spec"]["ports"]
    assert endpoint["port"] == port["name"]
    labels = rendered.one("Service")["metadata"]["labels"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
    rules = rendered.one("PrometheusRule")["spec"]["groups"]
    expected = relinked_groups(RUNBOOK, CONSOLE)
    for rule in (one for group in expected for one in group["rules"]):
        if rule.get("record") == "order_relay:objective:ratio":
            rule["expr"] = "vector(0.995)"
    assert rules == expected


def test_grafana_gets_the_dashboards() -> None:
    """Each has a ConfigMap with the sidecar's label; links lead to the configured runbook."""
    rendered = Rendered("everything")
    maps = [
        one for one in rendered.all("ConfigMap") if "grafana_dashboard" in one["metadata"]["labels"]
    ]
    found = {
        name.removesuffix(".json"): json.loads(text)
        for one in maps
        for name, text in one["data"].items()
    }
    assert found == {
        name: json.loads(
            json.dumps(board).replace(links.RUNBOOK, RUNBOOK).replace(links.CONSOLE, CONSOLE)
        )
        for name, board in boards()
    }


def test_the_network_policy_lets_through_what_is_needed() -> None:
    """In: the web port from workers and named namespaces. Out: DNS, Kafka, database, target."""
    policy = Rendered("everything").one("NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    (rule,) = policy["ingress"]
    namespaces = [
        one["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
        for one in rule["from"]
        if "namespaceSelector" in one
    ]
    assert namespaces == ["monitoring", "shop"]
    ports = {(port["port"], port["protocol"]) for out in policy["egress"] for port in out["ports"]}
    expected = {(port, "TCP") for port in (53, 443, 3000, 5432, 6066, 8443, 9093)}
    assert ports == expected | {(53, "UDP")}
    (kafka,) = (out for out in policy["egress"] if out["ports"][0]["port"] == 9093)
    assert kafka["to"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["consumers[0].name=Order-Logging"], "does not match pattern"),
        (["consumers=null"], "consumers is required|missing property 'consumers'"),
        (["web.port=null"], "port is required|missing property 'port'"),
        (["monitoring.dashboards=null"], "dashboards is required|missing property 'dashboards'"),
        (["fullnameOverride=Order_Relay"], "fullnameOverride.*does not match pattern"),
        (
            ["consumers[0].name=coupons", "consumers[0].replica=3"],
            "additional propert(y|ies) '?replica'? (is )?not allowed",
        ),
        (["consumer.name=coupons"], "additional propert(y|ies) '?consumer'? (is )?not allowed"),
        (["settings.DATABASE_URL=x"], "settings.DATABASE_URL is a secret: put it into secrets."),
        (
            ["consumers[0].name=coupons", "consumers[0].env.API_TOKEN=x"],
            "env of consumer coupons.API_TOKEN is a secret",
        ),
        (["settings.CONSUMERS=coupons"], "settings.CONSUMERS: the chart sets it itself"),
        (["secrets.DATABASE_URL=null"], "saved events would be lost with the pod"),
        (["secrets.KAFKA_SASL_PASSWORD.key=x"], "give existingSecret and key, or value"),
        (["state.volume=disk"], "state.volume"),
        (
            ["state.volume=claim", "consumers[0].name=coupons", "consumers[0].replicas=4"],
            "replicas must not exceed partitions",
        ),
        (
            ["consumers[0].name=coupons", "consumers[0].autoscaling.enabled=true"],
            "coupons: autoscaling needs autoscaling.topic and autoscaling.group",
        ),
        (
            ["consumers[0].name=coupons", "consumers[1].name=coupons"],
            "each consumer may be listed once",
        ),
        (["runbookBaseUrl=docs/runbook.md"], "runbookBaseUrl"),
        (["consoleBaseUrl=https://relay.example.com/"], "consoleBaseUrl"),
        (["monitoring.prometheusRule.objective=99.9"], "monitoring.prometheusRule.objective"),
    ],
)
def test_a_mistake_is_refused(arguments: list[str], said: str) -> None:
    """Helm's message names the value and what is wrong; wording varies with Helm's version."""
    done = template(*(word for one in arguments for word in ("--set", one)))
    assert done.returncode == 1, done.stdout[:500]
    assert said in done.stderr or re.search(said, done.stderr, re.IGNORECASE | re.DOTALL), (
        done.stderr
    )
