"""Where each panel leads: to a page of the console, and to the section of the runbook about it."""

from __future__ import annotations

from collections.abc import Mapping

from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.models import dashboard as model

RUNBOOK = "docs/how-to/runbook.md"
"""Its path in the repository, as in the alerts; the Helm chart puts the URL of a page here."""
CONSOLE = "http://localhost:6066"
# By dashboard and title of the panel: a page of the console, or an alert of the runbook, or both.
TARGETS: Mapping[str, Mapping[str, str]] = {
    "order-relay-delivery": {
        "Alerts firing": "/",
        "Target": "/consumers OrderRelayBreakerOpen",
        "Records waiting": "/consumers OrderRelayLagGrowing",
        "Oldest unfinished": "/consumers OrderRelayOldestUnfinishedTooOld",
        "Open dead letters": "/dead-letters OrderRelayDeadLetters",
        "Partitions without a worker": "/consumers OrderRelayPartitionsUnassigned",
        "Alerts": "/",
        "Delivered within 10 s": "OrderRelayErrorBudgetBurns",
        "Delivered within 60 s": "OrderRelayErrorBudgetBurns",
        "Error budget left": "OrderRelayErrorBudgetBurnsFast",
        "Share delivered in time": "/consumers OrderRelayErrorBudgetBurns",
        "Error budget burn rate": "/consumers OrderRelayErrorBudgetBurnsFast",
        "Records a second, by how they ended": "/consumers OrderRelayDeadLetterFlood",
        "From paid to delivered": "OrderRelayErrorBudgetBurns",
        "Given back and delivered twice": "/consumers OrderRelayRebalancing",
        "Records a second, by worker": "/consumers",
        "Lag by partition": "/consumers OrderRelayLagGrowing",
        "Records near their deletion": "/consumers OrderRelayNearDeletion",
        "Records that Kafka deleted": "/consumers OrderRelayRecordsDeleted",
        "Open transactions": "/consumers OrderRelayTransactionOpen",
        "Age of the oldest unfinished record": "/consumers OrderRelayOldestUnfinishedTooOld",
        "In flight and held": "/consumers OrderRelayLagGrowing",
        "Breaker": "/consumers OrderRelayBreakerOpen",
        "What the target does": "/consumers OrderRelayTargetRefusesUs",
        "First attempts that fail": "/consumers OrderRelayTargetFailsForMany",
        "Attempts a second, by status": "/consumers OrderRelayHostCannotSend",
        "Limits of the target": "/consumers OrderRelayTargetThrottles",
        "Attempts a second, by result": "/consumers OrderRelayTargetRefusesUs",
        "Time to an answer": "/consumers OrderRelayLagGrowing",
        "Dead letters, by reason": "/dead-letters OrderRelayDeadLetterFlood",
        "Open dead letters, by reason": "/dead-letters OrderRelayDeadLetters",
        "Age of the oldest open dead letter": "/dead-letters OrderRelayOpenDeadLettersDeleted",
        "Retries, and dead letters that Kafka refused": "/dead-letters",
    },
    "order-relay-publishing": {
        "Posted orders refused": "OrderRelayPublishFailed",
        "Kafka": "OrderRelayKafkaUnreachable",
        "Database": "OrderRelayFallbackDatabaseDown",
        "Rows pending": "/fallback OrderRelayPendingRowTooOld",
        "Oldest pending row": "/fallback OrderRelayPendingRowTooOld",
        "Rows FAILED": "/fallback?status=FAILED OrderRelayFailedRows",
        "Orders a second, by result": "OrderRelayPublishFailed",
        "Dead letters that were saved": "/dead-letters",
        "Rows that wait, by status": "/fallback OrderRelayFailedRows",
        "Rows published": "/fallback",
        "Age of the oldest row": "/fallback OrderRelayPendingRowTooOld",
        "Database, by worker": "OrderRelayFallbackDatabaseDown",
        "Files replaced": "OrderRelayFallbackFileReplaced",
        "Rows tried, by result": "/fallback OrderRelayPendingRowTooOld",
        "Rows tried a second, by worker": "/fallback",
    },
    "order-relay-worker": {
        "Workers": "/ OrderRelayNoWorker",
        "Partitions of the topic": "/",
        "Partitions owned": "/ OrderRelayPartitionsUnassigned",
        "Kafka": "OrderRelayKafkaUnreachable",
        "Event loop, worst": "OrderRelayEventLoopBlocked",
        "Youngest worker": "OrderRelayWorkerRestarting",
        "CPU": "/worker OrderRelayLagGrowing",
        "Memory": "/worker OrderRelayWorkerRestarting",
        "Open files": "OrderRelayHostCannotSend",
        "Garbage collections a second, by generation": "OrderRelayEventLoopBlocked",
        "Web connections closed, by reason": "/worker",
        "Log lines left out": "OrderRelayLogLinesLeftOut",
        "How late the event loop is": "OrderRelayEventLoopBlocked",
        "How late it is on average": "OrderRelayEventLoopBlocked",
        "Partitions by worker": "/consumers OrderRelayPartitionsUnassigned",
        "Rebalances": "OrderRelayRebalancing",
        "Intake stands still": "/consumers OrderRelayIntakeStandsStill",
        "Rebalancing": "OrderRelayRebalancing",
        "Time to commit": "OrderRelayKafkaUnreachable",
        "Records handed to the agent a second": "/worker",
        "Entries": "/consumers",
        "Recovering": "/consumers OrderRelayTableRecovering",
        "Last recovery": "/consumers OrderRelayTableRecovering",
        "Partitions without a table": "/consumers OrderRelayTableOff",
    },
}


def add_links(uid: str, panel: model.Panel) -> None:
    """Give a panel its links, in its menu; and to its series those that name their consumer."""
    page, alert = "", ""
    for part in TARGETS[uid][str(panel.title)].split():
        if part.startswith("/"):
            page = part
        else:
            alert = part
    panel.links = []
    if page:
        panel.links.append(_link("Console", f"${{console:raw}}{page}"))
    if alert:
        url = f"${{runbook:raw}}#{alert.lower()}"
        panel.links.append(_link(f"Runbook: {alert}", url))
    legends = [getattr(target, "legend_format", "") or "" for target in panel.targets or []]
    if page and all("{{consumer}}" in legend for legend in legends) and panel.field_config:
        url = f"${{console:raw}}{page}?consumer=${{__field.labels.consumer}}"
        panel.field_config.defaults.links = [
            _link("Console: ${__field.labels.consumer}", url),
            *panel.links[1:],
        ]


def _link(title: str, url: str) -> model.DashboardLink:
    return (
        build.DashboardLink(title)
        .type(model.DashboardLinkType.LINK)
        .url(url)
        .target_blank(True)
        .build()
    )
