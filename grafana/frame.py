"""What all dashboards have in common: who they ask, of which workers, and how to get about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.models import dashboard as model

from grafana.links import CONSOLE, RUNBOOK
from grafana.panels import DATASOURCE, Panel
from grafana.queries import ALERTS, relay, series

TAG = "order-relay"


class Marks(build.AnnotationQuery):
    """Marks over every panel where a query has a value, each with a title and a text.

    What Prometheus' annotations take beside the query is missing from the library.
    """

    def __init__(self, title: str, text: str, *, at_values: bool = False) -> None:
        """Format the marks; ``at_values``: the values are the times of the marks."""
        super().__init__()
        self._title = title
        self._text = text
        self._at_values = at_values

    def build(self) -> model.AnnotationQuery:
        """Return the query with what is written beside its marks."""
        made = _Marks(**vars(super().build()))
        made.written = {"step": "30s", "titleFormat": self._title, "textFormat": self._text}
        if self._at_values:
            made.written["useValueForTime"] = True
        return made


class _Marks(model.AnnotationQuery):
    written: dict[str, object]

    def to_json(self) -> dict[str, object]:
        return super().to_json() | self.written


def dashboard(
    uid: str, title: str, description: str, rows: Mapping[str, Iterable[Panel]]
) -> build.Dashboard:
    """Make a dashboard: its variables, its links to the others, the alerts over its panels.

    It is read-only in Grafana: it is changed here, in the code.
    """
    board = (
        build.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags([TAG])
        .readonly()
        .timezone("browser")
        .time("now-1h", "now")
        .refresh("30s")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .link(
            build.DashboardLink("Order relay")
            .type(model.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .include_vars(True)
            .keep_time(True)
        )
        .annotation(
            Marks("{{alertname}}", "{{severity}}")
            .name("Alerts")
            .datasource(DATASOURCE)
            .enable(True)
            .hide(False)
            .icon_color("red")
            .expr(f"max by (alertname, severity) ({ALERTS})")
        )
        .annotation(
            # A new version or a restart: the time at which the process began, in milliseconds.
            Marks("{{instance}} started", "order relay {{version}}", at_values=True)
            .name("Starts")
            .datasource(DATASOURCE)
            .enable(True)
            .hide(False)
            .icon_color("blue")
            .expr(
                f"max by (instance, version) ({relay('build_info')} * on (job, instance) "
                f"group_left () {series('process_start_time_seconds')}) * 1000"
            )
        )
        .with_variable(
            build.DatasourceVariable("datasource").label("Prometheus").type("prometheus")
        )
        .with_variable(
            build.QueryVariable("job")
            .label("Group")
            .description("Workers of one kind: the job they are scraped by.")
            .datasource(DATASOURCE)
            .query("label_values(order_relay_breaker_state, job)")
            .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(model.VariableSort.ALPHABETICAL_ASC)
            .current(model.VariableOption(text="order-relay", value="order-relay"))
        )
        .with_variable(_several("worker", "Worker", "instance"))
        .with_variable(_several("consumer", "Consumer", "consumer"))
        .with_variable(
            _text("console", "Console", "URL of a worker, for links to its pages.", CONSOLE)
        )
        .with_variable(
            _text("runbook", "Runbook", "URL of the runbook page, for links to it.", RUNBOOK)
        )
    )
    for row, panels in rows.items():
        board = board.with_row(build.Row(row))
        for panel in panels:
            board = board.with_panel(panel)
    return board


def _text(name: str, title: str, description: str, value: str) -> build.TextBoxVariable:
    """Make a variable that is typed; links to other dashboards take it along."""
    chosen = model.VariableOption(text=value, value=value)
    return (
        build.TextBoxVariable(name)
        .label(title)
        .description(description)
        .default_value(value)
        .current(chosen)
        .options([chosen])
    )


def _several(name: str, title: str, label: str) -> build.QueryVariable:
    """Make a variable that chooses some of a label's values, or all."""
    return (
        build.QueryVariable(name)
        .label(title)
        .description("All of them, or those that are looked at.")
        .datasource(DATASOURCE)
        .query(f'label_values(order_relay_breaker_state{{job="$job"}}, {label})')
        # Those that were there in the time that is shown, not only those of today.
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .current(model.VariableOption(text="All", value="$__all"))
    )
