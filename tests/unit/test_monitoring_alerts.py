"""The alerts: each is explained, tested both ways, and about real metrics."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from grafana.links import CONSOLE
from tests.support.alert_rules import grafanas_own, groups, recorded, rules
from tests.support.dashboard_panels import boards, panels
from tests.support.metric_catalogue import catalogue, recorded_series, unknown_in
from tests.support.prometheus_server import FOLDER, JOB
from tests.unit.test_docs import strings_of_the_code

RUNBOOK = Path(__file__).parents[2] / "docs" / "how-to" / "runbook.md"
RULES = rules()
FLAGS = re.MULTILINE | re.DOTALL
# These are about a machine or its network, whatever consumers run there.
OF_A_HOST = {"OrderRelayHostCannotSend", "OrderRelayKafkaUnreachable"}


@cache
def code_strings() -> str:
    """Every string of the application."""
    return "\n".join(strings_of_the_code())


def sections() -> dict[str, str]:
    """The runbook's sections of alerts, by their headings."""
    parts = re.split(r"^### (.+)$", RUNBOOK.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def unit_tests() -> Iterator[tuple[str, bool]]:
    """Every case of promtool's tests: which alert, and whether it fires."""
    for file in sorted((FOLDER / "tests").glob("*.yml")):
        for test in yaml.safe_load(file.read_text(encoding="utf-8"))["tests"]:
            assert test["name"], file
            for case in test["alert_rule_test"]:
                yield case["alertname"], bool(case["exp_alerts"])


@pytest.mark.parametrize("name", RULES)
def test_every_alert_says_how_bad_it_is_and_what_to_do(name: str) -> None:
    """A severity, one line with the value, its meaning, and a link to the runbook."""
    rule = RULES[name]
    assert rule["labels"]["severity"] in {"critical", "warning"}
    notes = rule["annotations"]
    assert "\n" not in notes["summary"]
    if name != "OrderRelayNoWorker":
        assert "{{" in notes["summary"]
    assert len(notes["description"]) > 40
    assert notes["runbook_url"] == f"docs/how-to/runbook.md#{name.lower()}"
    page = notes["console_url"].removeprefix(f"{CONSOLE}/")
    assert page.partition("?")[0] in {"", "consumers", "worker", "dead-letters", "fallback"}
    # A page of one consumer needs an alert about a consumer.
    assert ("consumer=" in page) <= notes["summary"].startswith("{{ $labels.consumer }}: ")


@pytest.mark.parametrize("name", RULES)
def test_every_alert_is_about_what_exists(name: str) -> None:
    """Every metric, label and label value of its expression is one that a worker has."""
    assert unknown_in(RULES[name]["expr"]) == []
    assert set(re.findall(r'job="([^"]*)"', RULES[name]["expr"])) <= {JOB}


@pytest.mark.parametrize(("name", "rule"), recorded().items(), ids=list(recorded()))
def test_what_is_recorded_is_about_what_exists(name: str, rule: dict[str, Any]) -> None:
    """Every recording rule has the project's prefix, and asks for existing series."""
    assert name.startswith("order_relay:")
    assert rule["expr"].startswith("vector") or unknown_in(rule["expr"]) == []


def test_the_objective_is_in_one_place() -> None:
    """One rule has the number; the alerts read it."""
    assert recorded()["order_relay:objective:ratio"]["expr"] == "vector(0.999)"
    others = [
        rule["expr"]
        for name, rule in {**recorded(), **RULES}.items()
        if name != "order_relay:objective:ratio"
    ]
    assert not [expr for expr in others if re.search(r"\b0\.(999|001)", expr)]
    burning = [rule["expr"] for name, rule in RULES.items() if "ErrorBudget" in name]
    assert len(burning) == 2
    assert all(expr.count("scalar(order_relay:objective:ratio)") == 2 for expr in burning)


def test_every_alert_about_a_consumer_names_it() -> None:
    """If a metric has the label consumer, the alert's summary begins with it."""
    for name, rule in RULES.items():
        metrics = re.findall(r"\border_relay[_:][\w:]+", rule["expr"])
        of_consumer = [
            one
            for one in metrics
            if "consumer" in {**catalogue(), **recorded_series()}.get(one, {})
        ]
        if of_consumer and name not in OF_A_HOST:
            assert rule["annotations"]["summary"].startswith("{{ $labels.consumer }}: "), name


def test_every_alert_is_shown_to_fire_and_not_to() -> None:
    """Promtool's tests have both for each alert, and no unknown alert."""
    cases = set(unit_tests())
    assert cases == {(name, fires) for name in RULES for fires in (True, False)}


def test_the_runbook_has_a_section_for_each_alert_and_no_other() -> None:
    """In the order of the rules, under the alert's name; last that of Grafana's own."""
    assert list(sections()) == [*RULES, grafanas_own()["title"]]


def test_the_runbook_never_posts_to_the_logger() -> None:
    """Commands post only to the worker, or open a connection and send nothing."""
    code = "\n".join(re.findall(r"^```console\n(.*?)^```", RUNBOOK.read_text(), FLAGS))
    assert "external_logger_url" in code
    assert set(re.findall(r"-X POST .*?(\S+:\d+/\S*)", code)) == {"localhost:6066/probe"}
    assert re.findall(r"urllib|urlopen|requests\.|aiohttp|http\.client|sendall", code) == []


def test_grafana_watches_prometheus() -> None:
    """Its own alert also fires without an answer, and is about the existing groups."""
    rule = grafanas_own()
    assert (rule["noDataState"], rule["execErrState"]) == ("Alerting", "Alerting")
    asked, compared = rule["data"]
    assert compared["refId"] == rule["condition"]
    assert compared["model"]["expression"] == asked["refId"]
    assert asked["datasourceUid"] == "prometheus"
    assert all(group["name"].startswith("order-relay-") for group in groups())
    assert "order-relay-" in asked["model"]["expr"]
    assert rule["annotations"]["runbook_url"] == f"docs/how-to/runbook.md#{rule['title'].lower()}"


@pytest.mark.parametrize("name", [*RULES, grafanas_own()["title"]])
def test_a_section_has_what_a_person_on_call_needs(name: str) -> None:
    """The severity, what is lost, existing panels and log phrases, and when it is over."""
    text = sections()[name]
    severity = RULES.get(name, grafanas_own())["labels"]["severity"]
    assert text.strip().lower().startswith(severity)
    assert "**" in text  # what is lost, or that nothing is
    assert re.search(r"^Over\b", text, re.MULTILINE)
    shown = {panel["title"] for _, board in boards() for panel in panels(board)}
    (line,) = re.findall(r"^- Panels: (.+(?:\n  .+)*)$", text, re.MULTILINE)
    named = re.findall(r"\*(.+?)\*", line.replace("\n ", ""))
    assert named
    assert set(named) <= shown
    (line,) = re.findall(r"^- Log: (.+)$", text, re.MULTILINE)
    assert [one for one in re.findall(r"`(.+?)`", line) if one not in code_strings()] == []


def test_what_is_unknown_is_seen() -> None:
    """The check of the other tests finds each kind of mistake."""
    assert unknown_in('order_relay_deliveries_total{outcome="delivered"}') == []
    assert unknown_in("order_relay_nothing > 0") == ["order_relay_nothing"]
    assert unknown_in('order_relay_breaker_state{outcome="delivered"}') != []
    assert unknown_in('order_relay_deliveries_total{outcome=~"delivered|lost"}') != []
    assert unknown_in("sum by (color) (order_relay_breaker_state)") != []


def test_prometheus_looks_for_workers_where_compose_runs_them() -> None:
    """Service, port and folder are the same in the two files, and the job is the alerts'."""
    services = yaml.safe_load((FOLDER.parent / "docker-compose.yml").read_text())["services"]
    scraped = {
        one["job_name"]: one
        for one in yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    }
    (discovery,) = scraped[JOB]["dns_sd_configs"]
    (name,) = discovery["names"]
    assert discovery["type"] == "A"
    assert any(port.endswith(f":{discovery['port']}") for port in services[name]["ports"])
    assert services[name]["environment"]["WEB_HOST"] == "0.0.0.0"
    assert "./prometheus:/etc/prometheus:ro" in services["prometheus"]["volumes"]
