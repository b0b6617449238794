"""The dashboard of deliveries: does every order reach the target, and how soon."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from grafana.frame import dashboard
from grafana.panels import Panel, Query, State, each, figure, line, timeline
from grafana.queries import (
    ALERTS,
    added,
    count,
    largest,
    per_second,
    quantile,
    recorded,
    relay,
    share_in_time,
    total,
)

BREAKER = {
    0: State("closed", "green"),
    1: State("half-open: probing", "yellow"),
    2: State("open: logger down", "red"),
}
# Each series is one state: where it is coloured, a worker sees the target so.
TARGET = {0: State("no", "transparent"), 1: State("yes", "blue")}
# What the objective leaves for late records and dead letters.
ALLOWED = "(1 - scalar(order_relay:objective:ratio))"
DELIVERIES = relay("deliveries_total")
ATTEMPTS = relay("delivery_attempt_seconds_bucket")
PAID_TO_DELIVERED = relay("paid_to_delivered_seconds_bucket")


def delivery() -> Dashboard:
    """Make the dashboard."""
    return dashboard(
        "order-relay-delivery",
        "Order relay: delivery",
        "From Kafka to the target. First row: is anything at risk.",
        {
            "Is anything at risk?": _at_risk(),
            "Objective: delivered in time": _objective(),
            "Deliveries": _rate(),
            "Backlog": _backlog(),
            "What the target answers": _logger(),
            "Given up, and tried again": _given_up(),
        },
    )


def _at_risk() -> list[Panel]:
    return [
        figure(
            "Alerts firing",
            "How many alerts of the relay fire now, of all groups. Each has a section in "
            "docs/how-to/runbook.md. Which they are stands in the timeline below.",
            f"count({ALERTS}) or vector(0)",
            decimals=0,
            steps=[(1, "red")],
        ),
        figure(
            "Target",
            "The breaker of the worker that is worst off. Open: the target fails, deliveries wait, "
            "nothing is dead-lettered for it. It closes by itself.",
            largest(relay("breaker_state")),
            states=BREAKER,
        ),
        figure(
            "Records waiting",
            "Records from the committed offset to the end, of all partitions that somebody owns. "
            "Some hundreds are normal under load.",
            added(largest(relay("consumer_lag"), "consumer", "topic", "partition")),
            decimals=0,
        ),
        figure(
            "Oldest unfinished",
            "Age of the oldest record that a worker has and has not finished. Seconds are normal; "
            "minutes are a stuck record, or a logger that is down.",
            largest(relay("oldest_unfinished_seconds")),
            unit="s",
            decimals=1,
            steps=[(60, "yellow"), (300, "red")],
        ),
        figure(
            "Open dead letters",
            "Orders that the target does not have: they are in the dead-letter topic, and were "
            "neither redriven nor discarded. They wait for a person.",
            added(largest(relay("dead_letters_open"), "consumer", "reason")),
            decimals=0,
            steps=[(0.5, "red")],
        ),
        figure(
            "Partitions without a worker",
            "No worker delivers their orders or reports their lag. In a rebalance these are all "
            "partitions, for some seconds.",
            f"clamp_min({added(largest(relay('topic_partitions'), 'consumer'))} - "
            f"{added(relay('assigned_partitions'))}, 0)",
            decimals=0,
            steps=[(1, "red")],
        ),
        timeline(
            "Alerts",
            "Which alerts fired when, of all groups. Empty is good.",
            Query(f"max by (alertname, severity) ({ALERTS})", "{{alertname}} ({{severity}})"),
            {1: State("firing", "red")},
            no_value="no alert fires",
            width=24,
        ),
    ]


def _objective() -> list[Panel]:
    return [
        figure(
            "Delivered within 10 s",
            "Share of the records, in the time shown, that the target had within 10 s of being "
            "paid. Dead letters count as not delivered.",
            share_in_time("10.0", "$__range"),
            unit="percentunit",
            decimals=3,
            base="blue",
            width=8,
        ),
        figure(
            "Delivered within 60 s",
            "Share of the records, in the time shown, that the target had within 60 s of being "
            "paid. Dead letters count as not delivered. The objective is about this share over 30 "
            "days.",
            share_in_time("60.0", "$__range"),
            unit="percentunit",
            decimals=3,
            base="blue",
            width=8,
        ),
        figure(
            "Error budget left",
            "Of 30 days, of the consumer that has least: 100 % when every record was in time, "
            "below 0 when the objective is missed. It needs the rules of prometheus/alerts.yml, "
            "and a Prometheus that keeps 30 days.",
            f"min(1 - {recorded('late:ratio_rate30d')} / {ALLOWED})",
            unit="percentunit",
            decimals=1,
            base="red",
            steps=[(0, "yellow"), (0.25, "green")],
            width=8,
        ),
        line(
            "Share delivered in time",
            "Of the records that ended at that time. A dip after an outage is its backlog, which "
            "is delivered late.",
            Query(
                share_in_time("10.0", "$__rate_interval", "consumer"), "{{consumer}} within 10 s"
            ),
            Query(
                share_in_time("60.0", "$__rate_interval", "consumer"), "{{consumer}} within 60 s"
            ),
            unit="percentunit",
            maximum=1,
        ),
        line(
            "Error budget burn rate",
            "1: the budget of 30 days lasts for 30 days. From 6 over six hours or 14.4 over an "
            "hour on people are told.",
            Query(f"{recorded('late:ratio_rate1h')} / {ALLOWED}", "{{consumer}} 1 h"),
            Query(f"{recorded('late:ratio_rate6h')} / {ALLOWED}", "{{consumer}} 6 h"),
            limit=6,
        ),
    ]


def _rate() -> list[Panel]:
    return [
        line(
            "Records a second, by how they ended",
            "delivered: the target has it. dead_lettered: given up. duplicate: its event was "
            "delivered before, so it was not posted again. abandoned: given back unfinished in a "
            "rebalance or at a stop, and delivered again later.",
            each(per_second, DELIVERIES, "outcome"),
            unit="recps",
        ),
        line(
            "From paid to delivered",
            "How long ago orders were paid when the target took them: half of them, 95 of a "
            "hundred, 99 of a hundred. High for a while after an outage, when the backlog is "
            "delivered.",
            Query(quantile(0.5, PAID_TO_DELIVERED), "median"),
            Query(quantile(0.95, PAID_TO_DELIVERED), "95 %"),
            Query(quantile(0.99, PAID_TO_DELIVERED), "99 %"),
            unit="s",
        ),
        line(
            "Given back and delivered twice",
            "abandoned: records that a rebalance or a stop gave back; they come again. duplicate: "
            "records whose event had been delivered already; the target was spared the second "
            "copy. Steps at a release or a worker's death are normal.",
            each(
                count,
                relay("deliveries_total", 'outcome=~"abandoned|duplicate"'),
                "consumer",
                "outcome",
            ),
            bars=True,
        ),
        line(
            "Records a second, by worker",
            "How the work is shared. A worker without partitions has none; one that falls behind "
            "the others may lack CPU: see the worker dashboard.",
            each(
                per_second,
                relay("deliveries_total", 'outcome!="abandoned"'),
                "consumer",
                "instance",
            ),
            unit="recps",
        ),
    ]


def _backlog() -> list[Panel]:
    return [
        line(
            "Lag by partition",
            "Records from the committed offset to the end. It waits for the oldest unfinished "
            "record: one record in a long backoff shows as a lag of all that finished behind it. "
            "Frozen while Kafka does not answer.",
            each(largest, relay("consumer_lag"), "consumer", "topic", "partition"),
            decimals=0,
        ),
        line(
            "Records near their deletion",
            "Unfinished records that are older than three quarters of the topic's retention. Kafka "
            "deletes them when it is over: lengthen it.",
            each(largest, relay("near_deletion_records"), "consumer", "topic", "partition"),
            decimals=0,
        ),
        line(
            "Records that Kafka deleted",
            "Before they were delivered, by worker. They are lost here: the order service must "
            "send them again.",
            each(total, relay("deleted_records_total"), "consumer", "instance"),
            decimals=0,
        ),
        line(
            "Open transactions",
            "How long one transaction of a producer has held back what stands behind it in the "
            "partition. Seconds are normal where producers use transactions.",
            each(largest, relay("transaction_open_seconds"), "consumer", "topic", "partition"),
            unit="s",
            limit=300,
        ),
        line(
            "Age of the oldest unfinished record",
            "By worker, since Kafka got it. Rising by a second each second: that record is stuck "
            "(look for 'Dead letter refused'), or the breaker is open. Falling: a backlog is being "
            "worked off.",
            each(largest, relay("oldest_unfinished_seconds"), "consumer", "instance"),
            unit="s",
            limit=300,
        ),
        line(
            "In flight and held",
            "in flight: POSTs and dead letters under way, at most MAX_IN_FLIGHT a worker. held: "
            "records in hand, also those in backoff or queued behind their key, at most 10,000 a "
            "worker. In flight at its limit: the target is slower than orders come. left in Kafka: "
            "records of keys that have as many in hand as one key may have; others go on, these "
            "are read again.",
            Query(
                added(relay("in_flight"), "consumer", "instance"),
                "{{consumer}} in flight {{instance}}",
            ),
            Query(
                added(relay("held_records"), "consumer", "instance"),
                "{{consumer}} held {{instance}}",
            ),
            Query(
                added(relay("left_in_kafka_records"), "consumer", "instance"),
                "{{consumer}} left in Kafka {{instance}}",
            ),
            decimals=0,
        ),
        timeline(
            "Breaker",
            "Of each worker. It opens after a run of failures with no success between, and asks "
            "with a probe every BREAKER_PROBE_INTERVAL_SECONDS; POST /probe asks at once.",
            each(largest, relay("breaker_state"), "consumer", "instance"),
            BREAKER,
        ),
    ]


def _logger() -> list[Panel]:
    return [
        timeline(
            "What the target does",
            "As any worker sees it. works: first attempts succeed. throttles: it refuses what is "
            "over its limit, and records are sent at the rate that it bears. fails_for_some: some "
            "first attempts of the last minute failed. down, refuses_us: the breaker is open; "
            "refuses_us is our token, URL or certificate.",
            each(largest, relay("target_state"), "consumer", "state"),
            TARGET,
        ),
        line(
            "First attempts that fail",
            "Share of the first attempts at records that failed, of the last minute, by worker. "
            "While many fail, a record's failures say nothing against it, and it is given up "
            "later. From a fifth on people are told.",
            each(largest, relay("first_attempts_failed_ratio"), "consumer", "instance"),
            unit="percentunit",
            maximum=1,
            limit=0.2,
        ),
        line(
            "Attempts a second, by status",
            "2xx … 5xx and 429: the class of the answer's status. timeout, connect, reset, tls, "
            "other: no answer came. local: this host lacks something to send with.",
            each(per_second, relay("delivery_attempts_total"), "status"),
            unit="reqps",
        ),
        line(
            "Limits of the target",
            "a second: the rate that it bears, learned from its refusals; a gap means no limit. at "
            "a time: attempts under way at most, MAX_IN_FLIGHT unless attempts timed out. Of each "
            "worker: together they send the sum.",
            Query(
                added(relay("target_rate_limit"), "consumer", "instance"),
                "{{consumer}} a second {{instance}}",
            ),
            Query(
                added(relay("concurrency_limit"), "consumer", "instance"),
                "{{consumer}} at a time {{instance}}",
            ),
        ),
        line(
            "Attempts a second, by result",
            "success: 2xx. retryable: network, time-out, 408, 425, 5xx. throttled: 429, 503 with "
            "Retry-After. rejected: the target refuses the message. outage: 401, 403, 407 or a "
            "redirect, so our token or URL. gone: 404, 405, 410. local: this host cannot send.",
            each(per_second, relay("delivery_attempts_total"), "result"),
            unit="reqps",
        ),
        line(
            "Time to an answer",
            "From POST to answer, of all attempts. Its limit is EXTERNAL_LOGGER_TIMEOUT_SECONDS.",
            Query(quantile(0.5, ATTEMPTS), "median"),
            Query(quantile(0.95, ATTEMPTS), "95 %"),
            Query(quantile(0.99, ATTEMPTS), "99 %"),
            unit="s",
        ),
    ]


def _given_up() -> list[Panel]:
    return [
        line(
            "Dead letters, by reason",
            "Each is an order that the target does not have. rejected and invalid: the order "
            "service or the target is wrong about the message. retries_exhausted: the target "
            "failed on it again and again while it took others.",
            each(count, relay("dead_letters_total"), "reason"),
            bars=True,
        ),
        line(
            "Open dead letters, by reason",
            "Letters in the topic that were neither redriven nor discarded, and those that left "
            "the topic open: deleted by retention, by a purge or with it.",
            each(largest, relay("dead_letters_open"), "consumer", "reason"),
            Query(
                largest(relay("dead_letters_open_deleted_total"), "consumer"),
                "{{consumer}} deleted",
            ),
            Query(
                count(relay("dead_letters_auto_redriven_total"), "consumer"),
                "{{consumer}} redriven automatically",
            ),
        ),
        line(
            "Age of the oldest open dead letter",
            "It waits for a person. The topic deletes it when its retention is over.",
            each(largest, relay("dead_letters_open_oldest_seconds"), "consumer"),
            unit="s",
        ),
        line(
            "Retries, and dead letters that Kafka refused",
            "retries: attempts that failed and are made again; few are normal. saved: dead letters "
            "that Kafka refused and the fallback table keeps until it takes them.",
            Query(count(relay("delivery_retries_total")), "retries"),
            Query(count(relay("dead_letters_saved_total")), "saved"),
            bars=True,
        ),
    ]
