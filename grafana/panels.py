"""The kinds of panels that the dashboards are made of, each in one form.

Every panel needs a description: what the person on call sees in it, and what is normal. A unit has
Grafana's name, ``decimals`` are the most that are shown, and a width is of 24.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from grafana_foundation_sdk.builders import common, prometheus, stat, statetimeline, timeseries
from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.models import common as shape
from grafana_foundation_sdk.models import dashboard as model

DATASOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
Panel: TypeAlias = timeseries.Panel | stat.Panel | statetimeline.Panel
# One colour for one meaning on all dashboards, by what a legend is made of.
COLOURS = {
    "{{outcome}}": {
        "delivered": "green",
        "duplicate": "blue",
        "abandoned": "purple",
        "dead_lettered": "red",
    },
    "{{result}}": {
        "success": "green",
        "published": "green",
        "retryable": "yellow",
        "retry": "yellow",
        "saved": "yellow",
        "rejected": "orange",
        "refused": "orange",
        "busy": "purple",
        "throttled": "purple",
        "gone": "dark-orange",
        "local": "dark-red",
        "outage": "red",
        "failed": "red",
    },
    "{{status}}": {
        "published": "green",
        "pending": "yellow",
        "failed": "red",
        "2xx": "green",
        "429": "purple",
        "5xx": "red",
        "local": "dark-red",
    },
}


@dataclass(frozen=True, slots=True)
class Query:
    """A question to Prometheus, and what its series are called in the legend."""

    expr: str
    legend: str


def each(ask: Callable[..., str], metric: str, *labels: str) -> Query:
    """Make a query for a series of each value of these labels, which its legend shows."""
    return Query(ask(metric, *labels), " ".join(f"{{{{{label}}}}}" for label in labels))


@dataclass(frozen=True, slots=True)
class State:
    """A number that means something: how it is shown."""

    text: str
    colour: str


def line(
    title: str,
    description: str,
    *queries: Query,
    unit: str = "short",
    decimals: float | None = None,
    maximum: float | None = None,
    limit: float | None = None,
    bars: bool = False,
    width: int = 12,
) -> timeseries.Panel:
    """Make a panel of lines over time, never below 0.

    The axis ends at ``maximum``, for what cannot be more. It is red from ``limit`` on, where an
    alert looks. ``bars`` are for counts of single events, which lines would blur.
    """
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .targets([_range(query, number) for number, query in enumerate(queries)])
        .unit(unit)
        .min(0)
        .span(width)
        .height(8)
        .line_width(1)
        .fill_opacity(60 if bars else 10)
        .show_points(shape.VisibilityMode.NEVER)
        .draw_style(shape.GraphDrawStyle.BARS if bars else shape.GraphDrawStyle.LINE)
        .tooltip(
            common.VizTooltipOptions()
            .mode(shape.TooltipDisplayMode.MULTI)
            .sort(shape.SortOrder.DESCENDING)
        )
        .legend(
            common.VizLegendOptions()
            .display_mode(shape.LegendDisplayMode.TABLE)
            .placement(shape.LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs(["lastNotNull", "max"])
        )
    )
    if decimals is not None:
        panel = panel.decimals(decimals)
    if maximum is not None:
        panel = panel.max(maximum)
    if bars:
        # $__rate_interval is four scrapes at least: bars nearer to each other would show each event
        # several times.
        panel = panel.interval("1m")
    if limit is not None:
        panel = panel.thresholds(_thresholds([(limit, "red")])).thresholds_style(
            common.GraphThresholdsStyleConfig().mode(shape.GraphThresholdsStyleMode.DASHED)
        )
    for name, colour in COLOURS.get(queries[0].legend, {}).items():
        panel = panel.override_by_name(
            name, [model.DynamicConfigValue("color", {"mode": "fixed", "fixedColor": colour})]
        )
    return panel


def figure(
    title: str,
    description: str,
    expr: str,
    *,
    unit: str = "short",
    decimals: float | None = None,
    steps: Sequence[tuple[float, str]] = (),
    states: Mapping[int, State] | None = None,
    base: str = "green",
    width: int = 4,
) -> stat.Panel:
    """Make a panel of one large number: what it is now.

    Below the first of the ``steps`` it has the colour ``base``, from each on that of the step.
    ``states`` name the numbers, if they stand for something.
    """
    panel = (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .targets([_instant(expr)])
        .unit(unit)
        .min(0)
        .span(width)
        .height(4)
        .graph_mode(shape.BigValueGraphMode.NONE)
        .color_mode(shape.BigValueColorMode.BACKGROUND)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(_thresholds(steps, base))
        .no_value("no data")
    )
    if decimals is not None:
        panel = panel.decimals(decimals)
    return panel.mappings(_mappings(states)) if states else panel


def timeline(
    title: str,
    description: str,
    query: Query,
    states: Mapping[int, State],
    *,
    no_value: str = "no data",
    width: int = 12,
) -> statetimeline.Panel:
    """Make a panel of which state each series had when."""
    return (
        statetimeline.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .targets([_range(query, 0)])
        .unit("short")
        .min(0)
        .max(max(states))
        .span(width)
        .height(8)
        .mappings(_mappings(states))
        .no_value(no_value)
        .merge_values(True)
        .row_height(0.8)
        .show_value(shape.VisibilityMode.AUTO)
        .legend(common.VizLegendOptions().show_legend(False))
        .tooltip(common.VizTooltipOptions().mode(shape.TooltipDisplayMode.SINGLE))
    )


def _range(query: Query, number: int) -> prometheus.Dataquery:
    return (
        prometheus.Dataquery()
        .expr(query.expr)
        .legend_format(query.legend)
        .range()
        .ref_id(chr(ord("A") + number))
        .datasource(DATASOURCE)
    )


def _instant(expr: str) -> prometheus.Dataquery:
    return (
        prometheus.Dataquery()
        .expr(expr)
        .legend_format("__auto")
        .instant()
        .ref_id("A")
        .datasource(DATASOURCE)
    )


def _thresholds(steps: Sequence[tuple[float, str]], base: str = "green") -> build.ThresholdsConfig:
    return (
        build.ThresholdsConfig()
        .mode(model.ThresholdsMode.ABSOLUTE)
        .steps(
            [
                model.Threshold(None, base),
                *(model.Threshold(value, colour) for value, colour in steps),
            ]
        )
    )


def _mappings(states: Mapping[int, State]) -> list[model.ValueMapping]:
    return [
        model.ValueMap(
            {
                str(number): model.ValueMappingResult(text=state.text, color=state.colour)
                for number, state in states.items()
            }
        )
    ]
