"""The dashboard of publishing: does every paid order get into Kafka, or safely into the table."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from grafana.frame import dashboard
from grafana.panels import Panel, Query, State, each, figure, line, timeline
from grafana.queries import count, largest, per_second, relay, total

UP = {0: State("does not answer", "red"), 1: State("answers", "green")}
PENDING = relay("fallback_messages", 'status="pending"')
FAILED = relay("fallback_messages", 'status="failed"')


def publishing() -> Dashboard:
    """Make the dashboard."""
    return dashboard(
        "order-relay-publishing",
        "Order relay: publishing and fallback",
        "Paid orders on their way into Kafka, and the fallback table that keeps what Kafka "
        "refuses. All workers report the same table: its figures are the largest, never the sum.",
        {
            "Is anything at risk?": _at_risk(),
            "Orders posted to the workers": _published(),
            "The fallback table": _table(),
            "Replay": _replay(),
        },
    )


def _at_risk() -> list[Panel]:
    return [
        figure(
            "Posted orders refused",
            "Orders posted to a worker in the time shown that neither Kafka nor the table "
            "accepted. Their senders got an error and must send them again.",
            total(relay("published_total", 'result="failed"')),
            decimals=0,
            steps=[(0.5, "red")],
        ),
        figure(
            "Kafka",
            "Whether Kafka answers every worker. If not, orders are saved in the table.",
            f"min({relay('kafka_up')})",
            states=UP,
        ),
        figure(
            "Database",
            "Whether the fallback table's database answers every worker. If not, what Kafka "
            "refuses cannot be saved.",
            f"min({relay('fallback_database_up')})",
            states=UP,
        ),
        figure(
            "Rows pending",
            "Rows that wait for Kafka. They are published by themselves, each minute.",
            largest(PENDING),
            decimals=0,
            steps=[(1, "yellow")],
        ),
        figure(
            "Oldest pending row",
            "0 without one. Minutes are an outage of Kafka; it fires an alert at 15.",
            largest(relay("fallback_oldest_pending_seconds")),
            unit="s",
            decimals=0,
            steps=[(120, "yellow"), (900, "red")],
        ),
        figure(
            "Rows FAILED",
            "Rows that Kafka refused permanently. They wait for a person: order-relay fallback "
            "list --status FAILED",
            largest(FAILED),
            decimals=0,
            steps=[(1, "red")],
        ),
    ]


def _published() -> list[Panel]:
    return [
        line(
            "Orders a second, by result",
            "published: Kafka has it. saved: Kafka refused, the table has it. refused: it is no "
            "event, or too large. busy: too many at once, its sender was told to come again. "
            "failed: neither took it, and its sender was told.",
            each(per_second, relay("published_total"), "result"),
            unit="reqps",
        ),
        line(
            "Dead letters that were saved",
            "Dead letters that Kafka refused and the table keeps: an outage of Kafka, or a fault "
            "of the dead-letter topic.",
            each(count, relay("dead_letters_saved_total"), "consumer", "instance"),
            bars=True,
        ),
    ]


def _table() -> list[Panel]:
    return [
        line(
            "Rows that wait, by status",
            "pending: for Kafka. failed: for a person. A mountain after an outage of Kafka is "
            "normal, and gone within minutes after it.",
            each(largest, relay("fallback_messages", 'status=~"pending|failed"'), "status"),
            decimals=0,
        ),
        line(
            "Rows published",
            "Rows that reached Kafka and are kept for FALLBACK_RETENTION_DAYS. It falls when old "
            "ones are purged.",
            each(largest, relay("fallback_messages", 'status="published"'), "status"),
            decimals=0,
        ),
        line(
            "Age of the oldest row",
            "Pending, rising by a second each second: Kafka takes nothing, or no worker replays. "
            "High while others are published: an earlier row of its key waits for its next try. "
            "FAILED rows wait for a person.",
            Query(largest(relay("fallback_oldest_pending_seconds")), "oldest pending"),
            Query(largest(relay("fallback_oldest_failed_seconds")), "oldest FAILED"),
            unit="s",
            limit=900,
        ),
        timeline(
            "Database, by worker",
            "Whether the table's database took a write of each worker when last tried. One worker "
            "alone: its network. All: the database.",
            each(largest, relay("fallback_database_up"), "instance"),
            UP,
        ),
        line(
            "Files replaced",
            "Times that a worker found the table's SQLite file deleted or replaced while it was "
            "open: its rows are lost.",
            each(largest, relay("fallback_files_replaced_total"), "instance"),
            decimals=0,
        ),
    ]


def _replay() -> list[Panel]:
    return [
        line(
            "Rows tried, by result",
            "published: in Kafka now. retry: refused, and tried again after 1, 2, 4 minutes. "
            "failed: refused permanently. Nothing at all while pending rows grow: no broker "
            "answers, and no retry is spent.",
            each(count, relay("fallback_replayed_total"), "result"),
            bars=True,
        ),
        line(
            "Rows tried a second, by worker",
            "Workers share the rows; which of them does more is chance.",
            each(per_second, relay("fallback_replayed_total"), "instance"),
            unit="recps",
        ),
    ]
