"""The console's files: what they read is there, and what they name exists."""

import re
import time
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from yarl import URL

from order_relay.delivery.target_health import Breaker
from order_relay.monitoring.metrics import Metrics
from order_relay.monitoring.stats import Stats
from order_relay.web import console
from tests.support.targets import target

ROOT = Path(__file__).parents[2]
SCRIPT = files(console).joinpath("worker.js").read_text("utf-8")
PAGE = files(console).joinpath("templates/worker.html").read_text("utf-8")
TEMPLATES = {
    path.name: path.read_text("utf-8")
    for path in files(console).joinpath("templates").iterdir()
    if path.name.endswith(".html")
}
ALL_PAGES_SCRIPT = files(console).joinpath("console.js").read_text("utf-8")


class NoConsumer:
    """A consumer without partitions."""

    def committed_offsets(self) -> dict[Any, int | None]:
        return {}

    positions = committed_offsets


@pytest.fixture
def figures() -> dict[str, Any]:
    """What ``/stats`` has."""
    stats = Stats(
        Metrics(CollectorRegistry()).of("order_logging"),
        group="g",
        url=URL("http://127.0.0.1:6066"),
        partitions=NoConsumer(),
        breaker=Breaker(20, 5.0, time.monotonic),
        target=target,
    )
    return stats.figures()


def has(figures: Any, path: str) -> bool:
    """Whether a path leads to a figure."""
    for key in path.split("."):
        if not isinstance(figures, dict) or key not in figures:
            return False
        figures = figures[key]
    return True


def test_every_figure_of_the_page_is_in_stats(figures: dict[str, Any]) -> None:
    """A figure that was renamed would stand there as a dash for ever."""
    paths = re.findall(r'data-figure="([^"]+)"', PAGE)
    assert len(paths) > 30
    assert [path for path in paths if not has(figures, path)] == []


def test_every_figure_of_the_script_is_in_stats(figures: dict[str, Any]) -> None:
    """What the verdicts depend on, too."""
    script = re.sub(r"(?<![\w.])(fallback|breaker)\.", r"figures.\1.", SCRIPT)
    script = re.sub(r"(?<![\w.])target\.(?!className|focus)", "figures.target.", script)
    paths = set(re.findall(r"(?<!\w)figures\.([a-z_]+(?:\.[a-z_]+)?)\b(?!\()", script))
    assert {
        "fallback.failed",
        "breaker.state",
        "target.state",
        "target.share_failed",
        "kafka_up",
    } <= paths
    assert "published.failed" in paths
    owned = {path.removesuffix(".length").removesuffix(".map") for path in paths}
    assert [path for path in sorted(owned) if not has(figures, path)] == []


def test_every_alert_of_the_script_has_its_section_in_the_runbook() -> None:
    """The verdicts send people there, those of the overview too."""
    sections = set(
        re.findall(r"^### (\w+)$", (ROOT / "docs/how-to/runbook.md").read_text(), re.MULTILINE)
    )
    overview = files(console).joinpath("cluster.py").read_text("utf-8")
    named = set(re.findall(r'"(OrderRelay\w+)"', SCRIPT + overview))
    assert len(named) > 8
    assert named <= sections


def test_the_script_finds_what_it_looks_for_in_the_page() -> None:
    """Ids that it asks for are there, once."""
    ids: list[str] = []

    class Ids(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            ids.extend(value or "" for name, value in attrs if name == "id")

    Ids().feed(PAGE)
    assert sorted(set(re.findall(r'byId\("([^"]+)"\)', SCRIPT))) == sorted(ids)


@pytest.mark.parametrize("page", sorted(TEMPLATES))
def test_a_page_holds_nothing_that_its_policy_refuses(page: str) -> None:
    """No script or style in the page, no handler in an attribute, no text that is not escaped."""
    text = TEMPLATES[page]
    assert "<style" not in text
    assert re.findall(r"<script(?! src=)", text) == []
    assert re.findall(r"\son\w+=|\sstyle=|\|safe|https?://", text) == []


def test_scripts_write_text_only_and_load_nothing_from_elsewhere() -> None:
    """What a target answered never becomes HTML."""
    for text in (SCRIPT, ALL_PAGES_SCRIPT, files(console).joinpath("console.css").read_text()):
        assert re.findall(r"https?://|innerHTML|insertAdjacentHTML|document\.write", text) == []


def test_the_script_of_all_pages_finds_what_it_looks_for() -> None:
    """Ids that it asks for are in the layout."""
    layout = TEMPLATES["layout.html"]
    wanted = set(re.findall(r'byId\("([^"]+)"\)', ALL_PAGES_SCRIPT))
    assert len(wanted) > 5
    assert [name for name in wanted if f'id="{name}"' not in layout] == []
