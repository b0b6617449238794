"""The dashboard of publishing: does every paid order get into Kafka, or safely into the table."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from grafana.frame import dashboard
from grafana.panels import Query, State, figure, line, timeline
from grafana.queries import count, largest, per_second, relay, total

UP = {0: State("does not answer", "red"), 1: State("answers", "green")}
PENDING = relay("fallback_messages", 'status="pending"')
FAILED = relay("fallback_messages", 'status="failed"')


def publishing() -> Dashboard:
    """Make the dashboard."""
    board = dashboard(
        "order-relay-publishing",
        "Order relay: publishing and fallback",
        "Paid orders on their way into Kafka, and the fallback table that keeps what Kafka "
        "refuses. All workers report the same table: its figures are the largest, never the sum.",
    )
    for row in (_at_risk, _published, _table, _replay):
        board = row(board)
    return board


def _at_risk(board: Dashboard) -> Dashboard:
    return (
        board.with_row(Row("Is anything at risk?"))
        .with_panel(
            figure(
                "Posted orders refused",
                "Orders posted to a worker in the time shown that neither Kafka nor the table "
                "accepted. Their senders got an error and must send them again.",
                total(relay("published_total", 'result="failed"')),
                unit="short",
                decimals=0,
                steps=[(0.5, "red")],
            )
        )
        .with_panel(
            figure(
                "Kafka",
                "Whether Kafka answers every worker. If not, orders are saved in the table.",
                f"min({relay('kafka_up')})",
                unit="short",
                states=UP,
            )
        )
        .with_panel(
            figure(
                "Database",
                "Whether the fallback table's database answers every worker. If not, what Kafka "
                "refuses cannot be saved.",
                f"min({relay('fallback_database_up')})",
                unit="short",
                states=UP,
            )
        )
        .with_panel(
            figure(
                "Rows pending",
                "Rows that wait for Kafka. They are published by themselves, each minute.",
                largest(PENDING),
                unit="short",
                decimals=0,
                steps=[(1, "yellow")],
            )
        )
        .with_panel(
            figure(
                "Oldest pending row",
                "0 without one. Minutes are an outage of Kafka; it fires an alert at 15.",
                largest(relay("fallback_oldest_pending_seconds")),
                unit="s",
                decimals=0,
                steps=[(120, "yellow"), (900, "red")],
            )
        )
        .with_panel(
            figure(
                "Rows FAILED",
                "Rows that Kafka refused permanently. They wait for a person: "
                "order-relay fallback list --status FAILED",
                largest(FAILED),
                unit="short",
                decimals=0,
                steps=[(1, "red")],
            )
        )
    )


def _published(board: Dashboard) -> Dashboard:
    return (
        board.with_row(Row("Orders posted to the workers"))
        .with_panel(
            line(
                "Orders a second, by result",
                "published: Kafka has it. saved: Kafka refused, the table has it. refused: it is "
                "no event, or too large. busy: too many at once, its sender was told to come "
                "again. failed: neither took it, and its sender was told.",
                Query(per_second(relay("published_total"), "result"), "{{result}}"),
                unit="reqps",
            )
        )
        .with_panel(
            line(
                "Dead letters that were saved",
                "Dead letters that Kafka refused and the table keeps: an outage of Kafka, or a "
                "fault of the dead-letter topic.",
                Query(
                    count(relay("dead_letters_saved_total"), "consumer", "instance"),
                    "{{consumer}} {{instance}}",
                ),
                unit="short",
                bars=True,
            )
        )
    )


def _table(board: Dashboard) -> Dashboard:
    return (
        board.with_row(Row("The fallback table"))
        .with_panel(
            line(
                "Rows that wait, by status",
                "pending: for Kafka. failed: for a person. A mountain after an outage of Kafka "
                "is normal, and gone within minutes after it.",
                Query(largest(relay("fallback_messages", 'status=~"pending|failed"'), "status"),
                      "{{status}}"),
                unit="short",
                decimals=0,
            )
        )
        .with_panel(
            line(
                "Rows published",
                "Rows that reached Kafka and are kept for FALLBACK_RETENTION_DAYS. It falls when "
                "old ones are purged.",
                Query(largest(relay("fallback_messages", 'status="published"'), "status"),
                      "{{status}}"),
                unit="short",
                decimals=0,
            )
        )
        .with_panel(
            line(
                "Age of the oldest row",
                "Pending, rising by a second each second: Kafka takes nothing, or no worker "
                "replays. High while others are published: an earlier row of its key waits for its "
                "next try. FAILED rows wait for a person.",
                Query(largest(relay("fallback_oldest_pending_seconds")), "oldest pending"),
                Query(largest(relay("fallback_oldest_failed_seconds")), "oldest FAILED"),
                unit="s",
                limit=900,
            )
        )
        .with_panel(
            timeline(
                "Database, by worker",
                "Whether the table's database took a write of each worker when last tried. One "
                "worker alone: its network. All: the database.",
                Query(largest(relay("fallback_database_up"), "instance"), "{{instance}}"),
                UP,
            )
        )
        .with_panel(
            line(
                "Files replaced",
                "Times that a worker found the table's SQLite file deleted or replaced while it "
                "was open: its rows are lost.",
                Query(largest(relay("fallback_files_replaced_total"), "instance"), "{{instance}}"),
                unit="short",
                decimals=0,
            )
        )
    )  # fmt: skip


def _replay(board: Dashboard) -> Dashboard:
    return (
        board.with_row(Row("Replay"))
        .with_panel(
            line(
                "Rows tried, by result",
                "published: in Kafka now. retry: refused, and tried again after 1, 2, 4 minutes. "
                "failed: refused permanently. Nothing at all while pending rows grow: no broker "
                "answers, and no retry is spent.",
                Query(count(relay("fallback_replayed_total"), "result"), "{{result}}"),
                unit="short",
                bars=True,
            )
        )
        .with_panel(
            line(
                "Rows tried a second, by worker",
                "Workers share the rows; which of them does more is chance.",
                Query(per_second(relay("fallback_replayed_total"), "instance"), "{{instance}}"),
                unit="recps",
            )
        )
    )
