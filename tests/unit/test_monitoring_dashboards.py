"""The dashboards: made by the code, complete, and with existing metrics only."""

import inspect
import re
from typing import Any

import pytest
import yaml

from grafana.build import FOLDER, dashboards
from grafana.links import TARGETS
from order_relay.monitoring.metrics import PREFIX
from order_relay.web.console.pages import Console
from tests.support.alert_rules import rules
from tests.support.dashboard_panels import boards, panels, questions
from tests.support.metric_catalogue import catalogue, unknown_in

PROVISIONING = FOLDER.parent / "provisioning"
BOARDS = dict(boards())
# Those without a variable part, from the table of routes.
CONSOLE_PAGES = set(re.findall(r'"(/[a-z-]*)": self\._', inspect.getsource(Console.add_to)))
PANELS = [
    pytest.param(panel, id=f"{name}: {panel['title']}")
    for name, board in BOARDS.items()
    for panel in panels(board)
]


def test_the_committed_files_are_what_the_code_makes() -> None:
    """``python -m grafana.build`` (``make dashboards``) would change nothing."""
    committed = {file.name: file.read_text(encoding="utf-8") for file in FOLDER.iterdir()}
    assert committed == dashboards()


def test_there_are_three_that_link_to_each_other() -> None:
    """Delivery, publishing, workers: each with its own uid, and links to the others."""
    assert set(BOARDS) == {"order-relay-delivery", "order-relay-publishing", "order-relay-worker"}
    for name, board in BOARDS.items():
        assert board["uid"] == name
        assert board["editable"] is False
        (link,) = board["links"]
        assert set(link["tags"]) <= set(board["tags"])


@pytest.mark.parametrize("panel", PANELS)
def test_every_panel_can_be_read(panel: dict[str, Any]) -> None:
    """It has a description, a unit, a minimum of 0, and names for its lines."""
    assert panel["title"]
    assert len(panel["description"]) > 20
    defaults = panel["fieldConfig"]["defaults"]
    assert defaults["unit"]
    assert defaults["min"] == 0
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    for target in panel["targets"]:
        assert target["datasource"] == panel["datasource"]
        assert target["legendFormat"]
    if panel["type"] == "timeseries":
        assert panel["options"]["legend"]["showLegend"] is True


@pytest.mark.parametrize("panel", PANELS)
def test_every_panel_leads_to_what_helps(panel: dict[str, Any]) -> None:
    """To a page that the console has, to a section that the runbook has, or to both."""
    pages, sections = [], []
    for link in panel["links"]:
        variable, path = re.fullmatch(r"\$\{(\w+):raw\}(.+)", link["url"]).groups()  # type: ignore[union-attr]
        assert link["targetBlank"] is True
        if variable == "console":
            pages.append(path.partition("?")[0])
        else:
            assert variable == "runbook"
            sections.append(path)
            assert (
                link["title"] == f"Runbook: {next(n for n in rules() if f'#{n.lower()}' == path)}"
            )
    assert pages or sections
    assert set(pages) <= CONSOLE_PAGES


@pytest.mark.parametrize("panel", PANELS)
def test_a_series_of_a_consumer_leads_to_its_page(panel: dict[str, Any]) -> None:
    """If each series has a consumer, its link names the consumer; the runbook's stays."""
    has_page = any("console" in link["url"] for link in panel["links"])
    of_consumer = all("{{consumer}}" in target["legendFormat"] for target in panel["targets"])
    links = panel["fieldConfig"]["defaults"].get("links", [])
    if not (has_page and of_consumer):
        assert links == []
        return
    console, *others = (link["url"] for link in links)
    assert console.endswith("?consumer=${__field.labels.consumer}")
    assert others == [link["url"] for link in panel["links"][1:]]
    for target in panel["targets"]:
        if by := re.search(r"\bby \(([^)]*)\)", target["expr"]):
            assert "consumer" in by[1].split(", ")


def test_the_addresses_behind_the_links_are_variables() -> None:
    """Each dashboard has one for the console and one for the runbook, as the alerts name it."""
    for name, board in boards():
        typed = {
            one["name"]: one["query"]
            for one in board["templating"]["list"]
            if one["type"] == "textbox"
        }
        assert typed == {"console": "http://localhost:6066", "runbook": "docs/how-to/runbook.md"}, (
            name
        )


def test_no_link_is_of_a_panel_that_is_gone() -> None:
    """The table of links has exactly the existing panels."""
    for name, board in BOARDS.items():
        assert set(TARGETS[name]) == {panel["title"] for panel in panels(board)}


@pytest.mark.parametrize("panel", PANELS)
def test_bars_are_a_minute_apart(panel: dict[str, Any]) -> None:
    """Bars count events over at least four scrapes: closer bars would share them."""
    style = panel["fieldConfig"]["defaults"].get("custom", {}).get("drawStyle")
    assert panel.get("interval") == ("1m" if style == "bars" else None)


@pytest.mark.parametrize("name", BOARDS)
def test_panels_do_not_lie_on_each_other(name: str) -> None:
    """Every cell of the grid has one panel at most, and none crosses the right edge."""
    taken: set[tuple[int, int]] = set()
    for panel in BOARDS[name]["panels"]:
        at = panel["gridPos"]
        places = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not places & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= places


@pytest.mark.parametrize("name", BOARDS)
def test_panels_have_titles_and_numbers_of_their_own(name: str) -> None:
    """A person can name a panel, and a link can lead to it."""
    titles = [panel["title"] for panel in panels(BOARDS[name])]
    assert len(set(titles)) == len(titles)
    numbers = [panel["id"] for panel in BOARDS[name]["panels"]]
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize(
    "question", [pytest.param(q, id=f"{q.panel}: {q.expr}") for q in questions()]
)
def test_only_what_exists_is_asked_for(question: Any) -> None:
    """Every metric, label and label value in a query is one that a worker has."""
    assert unknown_in(question.expr) == []


def test_every_metric_of_the_relay_is_on_a_dashboard() -> None:
    """No metric is without a panel."""
    asked = " ".join(question.expr for question in questions())
    ours = {name for name in catalogue() if name.startswith(PREFIX)}
    stems = {re.sub(r"_(bucket|sum|count)$", "", name) for name in ours}
    assert {name for name in stems if not re.search(rf"\b{name}(_bucket)?\b", asked)} == set()


def test_alerts_and_starts_are_marked() -> None:
    """Each dashboard marks where an alert fired, and where a worker started, with its version."""
    for name, board in boards():
        marks = {marks["name"]: marks for marks in board["annotations"]["list"]}
        assert list(marks) == ["Alerts", "Starts"], name
        assert marks["Starts"]["useValueForTime"] is True
        assert "process_start_time_seconds" in marks["Starts"]["expr"]
        assert "{{version}}" in marks["Starts"]["textFormat"]


def test_grafana_is_given_what_the_dashboards_ask_for() -> None:
    """The source is a Prometheus with its alerts; the folder is the mounted one."""
    source = yaml.safe_load((PROVISIONING / "datasources/prometheus.yml").read_text())
    (prometheus,) = source["datasources"]
    assert (prometheus["type"], prometheus["uid"]) == ("prometheus", "prometheus")
    assert prometheus["jsonData"]["manageAlerts"] is True
    provider = yaml.safe_load((PROVISIONING / "dashboards/order-relay.yml").read_text())
    assert provider["providers"][0]["options"]["path"] == "/var/lib/grafana/dashboards"
    scraped = yaml.safe_load((FOLDER.parents[1] / "prometheus/prometheus.yml").read_text())
    interval = prometheus["jsonData"]["timeInterval"]
    assert interval == scraped["global"]["scrape_interval"]
