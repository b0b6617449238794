"""The Helm chart's files, without Helm: one source for each thing."""

import json

import pytest
import yaml

from order_relay.settings import Settings
from order_relay.settings.secret_files import secret_fields
from order_relay.version import VERSION
from scripts import alerts
from scripts.chart import ALERTS, CHART, files
from tests.support.alert_rules import relinked_groups

CONSOLE = "https://relay.example.com"
RUNBOOK = "https://docs.example.com/how-to/runbook/"


def test_copies_are_those_that_the_script_makes() -> None:
    """Alerts, dashboards and the version have one source each, outside the chart."""
    expected = files()
    assert {path for path, text in expected.items() if path.read_text() != text} == set()
    copies = {path for path in (CHART / "files").rglob("*") if path.is_file()}
    assert copies == expected.keys() - {CHART / "Chart.yaml"}
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (VERSION, VERSION)


def test_each_value_is_in_the_schema() -> None:
    """The schema names exactly the values of values.yaml, so that a typo is refused."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert schema["properties"].keys() - {"global"} == values.keys()


def test_the_chart_knows_the_secret_settings() -> None:
    """Its ConfigMap refuses exactly the settings that are secrets of the product."""
    text = (CHART / "templates" / "_refusals.tpl").read_text()
    named = text.partition('"order-relay.secretSettings" -}}')[2].partition("{{")[0].split()
    assert named == sorted(name.upper() for name in secret_fields(Settings))


def test_links_of_alerts_lead_to_a_runbook_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    """The script prints the rules with the user's links; without a URL it changes nothing."""
    alerts.main(["--runbook-base-url", RUNBOOK, "--console-base-url", f"{CONSOLE}/"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed == {"groups": relinked_groups(RUNBOOK, CONSOLE)}
    alerts.main([])
    assert capsys.readouterr().out == ALERTS.read_text()


@pytest.mark.parametrize("url", ["docs/runbook.md", "ftp://docs", "https://", "https://docs/#x"])
def test_an_invalid_link_is_refused(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The last line names the option and what it must be."""
    with pytest.raises(SystemExit):
        alerts.main(["--runbook-base-url", url])
    assert "must be an http or https URL without #" in capsys.readouterr().err
