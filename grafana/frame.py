"""What all dashboards have in common: who they ask, of which workers, and how to get about."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.models import dashboard as model

from grafana.panels import DATASOURCE
from grafana.queries import ALERTS

TAG = "order-relay"


class AlertMarks(build.AnnotationQuery):
    """Marks over every panel where an alert fired, with its name.

    What Prometheus' annotations take beside the query is missing from the library.
    """

    def build(self) -> model.AnnotationQuery:
        """Return the query with what is written beside its marks."""
        return _AlertMarks(**vars(super().build()))


class _AlertMarks(model.AnnotationQuery):
    def to_json(self) -> dict[str, object]:
        return super().to_json() | {
            "step": "30s",
            "titleFormat": "{{alertname}}",
            "textFormat": "{{severity}}",
        }


def dashboard(uid: str, title: str, description: str) -> build.Dashboard:
    """Begin a dashboard: its variables, its links to the others, and the alerts over its panels.

    It is read-only in Grafana: it is changed here, in the code.
    """
    return (
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
            AlertMarks()
            .name("Alerts")
            .datasource(DATASOURCE)
            .enable(True)
            .hide(False)
            .icon_color("red")
            .expr(f"max by (alertname, severity) ({ALERTS})")
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
