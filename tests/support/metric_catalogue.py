"""Every series that a worker can have, and a check of queries."""

import re
from collections.abc import Iterator, Mapping
from functools import cache

from faust.sensors.prometheus import FaustMetrics

from order_relay.monitoring.metrics import GAUGES, OF_PARTITION, Metrics
from tests.support.alert_rules import recorded

# What Prometheus adds to each series, and series of its own.
EVERYWHERE = {"job", "instance"}
OF_PROMETHEUS: Mapping[str, Mapping[str, set[str]]] = {
    "up": {},
    "ALERTS": {"alertname": set(), "alertstate": {"firing", "pending"}, "severity": set()},
}
OF_THE_RUN = {"consumer", "topic", "partition", "version", "python"}
SELECTOR = re.compile(r"\b(?P<name>[a-zA-Z_][\w:]*)\s*\{(?P<matchers>[^}]*)\}")
BARE = re.compile(
    r"(?<!:)\b(?P<name>(?:order_relay|faust|process|python)[_:][\w:]+|up|ALERTS)\b(?!:)"
)
MATCHER = re.compile(r'(?P<label>\w+)\s*(?P<how>=~|!~|!=|=)\s*"(?P<value>[^"]*)"')
GROUPING = re.compile(
    r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\((?P<labels>[^)]*)\)"
)


@cache
def catalogue() -> dict[str, dict[str, set[str]]]:
    """Every series by name: its labels, and the values of each label at the start.

    A label without values gets them at run time: topics, partitions.
    """
    worker = Metrics()
    worker.add_process()
    metrics = worker.of("order_logging")
    FaustMetrics.create(metrics.registry, "faust")
    for name in GAUGES[OF_PARTITION]:
        metrics.of_partition(name, "orders", 0, 0)
    found: dict[str, dict[str, set[str]]] = {}
    for family in metrics.registry.collect():
        for sample in family.samples:
            labels = found.setdefault(sample.name, {})
            for label, value in sample.labels.items():
                labels.setdefault(label, set()).add(value)
    for labels in found.values():
        # Known only when it runs.
        for label in OF_THE_RUN & labels.keys():
            labels[label] = set()
    return found


@cache
def recorded_series() -> dict[str, dict[str, set[str]]]:
    """Every series that a recording rule makes: per job and consumer, or a single one."""
    return {
        name: {} if rule["expr"].startswith("vector") else {"consumer": set()}
        for name, rule in recorded().items()
    }


def unknown_in(expr: str) -> list[str]:
    """Name each unknown metric, label and label value of an expression."""
    return list(_unknown(expr))


def _unknown(expr: str) -> Iterator[str]:
    known = {**catalogue(), **OF_PROMETHEUS, **recorded_series()}
    names = {found["name"] for found in SELECTOR.finditer(expr)}
    names |= {found["name"] for found in BARE.finditer(re.sub(r'"[^"]*"', '""', expr))}
    if not names:
        yield f"no metric in {expr}"
    labels = {"le"} if "_bucket" in expr else set()
    for name in names:
        if name not in known:
            yield name
            continue
        labels |= known[name].keys()
    for selector in SELECTOR.finditer(expr):
        of_metric = known.get(selector["name"], {})
        for matcher in MATCHER.finditer(selector["matchers"]):
            yield from _unknown_matcher(selector["name"], of_metric, matcher)
    for grouping in GROUPING.finditer(expr):
        for label in re.findall(r"\w+", grouping["labels"]):
            if label not in labels | EVERYWHERE:
                yield f"{label} of {grouping[0]}"


def _unknown_matcher(
    name: str, labels: Mapping[str, set[str]], matcher: re.Match[str]
) -> Iterator[str]:
    if matcher["label"] in EVERYWHERE:
        return
    if matcher["label"] not in labels:
        yield f"{name}{{{matcher['label']}}}"
    elif values := labels[matcher["label"]]:
        asked = matcher["value"].split("|") if "~" in matcher["how"] else [matcher["value"]]
        yield from (f"{name}{{{matcher['label']}={one}}}" for one in asked if one not in values)
