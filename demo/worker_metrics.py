"""What the worker says about itself at ``/metrics``, read from Prometheus' text format."""

from __future__ import annotations

from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

from demo.options import ORDER_LOGGING

PREFIX = "order_relay_"
_BREAKER = {0: "closed", 1: "half-open", 2: "open"}


@dataclass(frozen=True, slots=True)
class WorkerMetrics:
    """The figures the live view shows; ``None`` or empty where the worker gives none.

    Attributes:
        in_flight: Requests under way.
        held: Records it has taken and not finished, those that wait for a retry among them.
        retries: Failed attempts that are made again.
        oldest_unfinished_seconds: Age of the oldest record that is not finished.
        breaker: ``closed``, ``half-open`` or ``open``.
        lag: Records behind, by partition of the order topic.
        published: Rows of the shop's table that it has published.
    """

    in_flight: int | None = None
    queued: int | None = None
    retries: int | None = None
    oldest_unfinished_seconds: float | None = None
    breaker: str | None = None
    lag: dict[int, int] = field(default_factory=dict)
    published: int | None = None


def parse_metrics(text: str, order_topic: str) -> WorkerMetrics:
    """Pick out the figures of order_logging; what is missing or unreadable stays empty."""
    single: dict[str, float] = {}
    lag: dict[int, int] = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.labels.get("consumer", ORDER_LOGGING) != ORDER_LOGGING:
                    continue
                name = sample.name.removeprefix(PREFIX)
                if name == "consumer_lag":
                    if sample.labels.get("topic") == order_topic:
                        lag[int(sample.labels["partition"])] = int(sample.value)
                elif name == "fallback_replayed_total":
                    if sample.labels.get("result") == "published":
                        single["replayed"] = sample.value
                elif not sample.labels.keys() - {"consumer"} and sample.name.startswith(PREFIX):
                    single[name] = sample.value
        return WorkerMetrics(
            in_flight=_whole(single.get("in_flight")),
            queued=_whole(single.get("held_records")),
            retries=_whole(single.get("delivery_retries_total", single.get("retries_total"))),
            oldest_unfinished_seconds=single.get("oldest_unfinished_seconds"),
            breaker=_BREAKER.get(int(single.get("breaker_state", -1))),
            lag=dict(sorted(lag.items())),
            published=_whole(single.get("replayed")),
        )
    except (ValueError, OverflowError, KeyError):  # not the text format, or not-a-number
        return WorkerMetrics()


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
