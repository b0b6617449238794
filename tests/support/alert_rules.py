"""The alerts in the files: Prometheus' rules, and Grafana's own alert."""

from typing import Any

import yaml

from grafana import links
from tests.support.prometheus_server import ALERTS, FOLDER

GRAFANAS = FOLDER.parent / "grafana" / "provisioning" / "alerting" / "order-relay.yml"


def groups() -> list[dict[str, Any]]:
    """Prometheus' groups of rules."""
    return list(yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"])


def rules() -> dict[str, dict[str, Any]]:
    """Prometheus' rules by alert name, in file order."""
    return {rule["alert"]: rule for rule in _all() if "alert" in rule}


def recorded() -> dict[str, dict[str, Any]]:
    """Prometheus' recording rules by series name, in file order."""
    return {rule["record"]: rule for rule in _all() if "record" in rule}


def _all() -> list[dict[str, Any]]:
    return [rule for group in groups() for rule in group["rules"]]


def relinked_groups(runbook: str, console: str) -> list[dict[str, Any]]:
    """Prometheus' groups of rules with links to another runbook and console."""
    found = groups()
    for rule in (one for group in found for one in group["rules"] if "alert" in one):
        notes = rule["annotations"]
        notes["runbook_url"] = f"{runbook}#{notes['runbook_url'].partition('#')[2]}"
        notes["console_url"] = console + notes["console_url"].removeprefix(links.CONSOLE)
    return found


def grafanas_own() -> dict[str, Any]:
    """The alert that Grafana evaluates itself."""
    (group,) = yaml.safe_load(GRAFANAS.read_text(encoding="utf-8"))["groups"]
    (rule,) = group["rules"]
    return dict(rule)
