"""The dashboard of the workers themselves: process, event loop, group, Faust, table."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from grafana.frame import dashboard
from grafana.panels import Panel, Query, State, each, figure, line, timeline
from grafana.queries import JOB, added, count, largest, per_second, quantile, relay, series

LOOP_LAG = relay("event_loop_lag_seconds_bucket")
COMMITS = series("faust_consumer_commit_latency_bucket")
BUSY = {0: State("no", "green"), 1: State("yes", "yellow")}


def worker() -> Dashboard:
    """Make the dashboard."""
    return dashboard(
        "order-relay-worker",
        "Order relay: workers",
        "The workers as processes and as members of the consumer group. Faust's metrics are shown "
        "where they mean something: records go through it in batches and acks are our own.",
        {
            "Now": _now(),
            "Process": _process(),
            "Event loop": _loop(),
            "Consumer group and Faust": _group(),
            "Table of deliveries": _table(),
        },
    )


def _now() -> list[Panel]:
    return [
        figure(
            "Workers",
            "That answer Prometheus. 0: none runs, or Prometheus cannot reach them.",
            f"sum(up{{{JOB}}}) or vector(0)",
            decimals=0,
            base="red",
            steps=[(1, "green")],
        ),
        figure(
            "Partitions of the topic",
            "More workers than this leave some idle.",
            added(largest(relay("topic_partitions"), "consumer")),
            decimals=0,
            base="blue",
        ),
        figure(
            "Partitions owned",
            "By all workers together: as many as the topic has, but for some seconds in a "
            "rebalance.",
            added(relay("assigned_partitions")),
            decimals=0,
            base="red",
            steps=[(1, "green")],
        ),
        figure(
            "Kafka",
            "Whether Kafka answered every worker in the last 30 s.",
            f"min({relay('kafka_up')})",
            states={0: State("does not answer", "red"), 1: State("answers", "green")},
        ),
        figure(
            "Event loop, worst",
            "How late the slowest worker's loop was for 99 of a hundred probes. Milliseconds are "
            "normal; above half a second it hangs.",
            f"max({quantile(0.99, LOOP_LAG, 'instance')})",
            unit="s",
            steps=[(0.1, "yellow"), (0.5, "red")],
        ),
        figure(
            "Youngest worker",
            "Since when the worker that was started last runs. Seconds again and again: something "
            "ends it.",
            f"min(time() - {series('process_start_time_seconds')})",
            unit="s",
            decimals=0,
            base="blue",
        ),
    ]


def _process() -> list[Panel]:
    return [
        line(
            "CPU",
            "Cores in use. A worker uses little more than one: at one it is at its limit, and more "
            "workers help, up to the number of partitions.",
            each(per_second, series("process_cpu_seconds_total"), "instance"),
            decimals=2,
        ),
        line(
            "Memory",
            "Resident. It does not grow with the backlog: 10,000 records in hand at most. With "
            "DELIVERIES_STORE=memory it grows with the table.",
            each(added, series("process_resident_memory_bytes"), "instance"),
            unit="bytes",
        ),
        line(
            "Open files",
            "Connections to the target (at most MAX_IN_FLIGHT), to the web server (2,500), to "
            "Kafka and the database. Below some 3,000 the worker makes do with fewer.",
            Query(added(series("process_open_fds"), "instance"), "open {{instance}}"),
            Query(f"min({series('process_max_fds')})", "limit"),
            decimals=0,
        ),
        line(
            "Garbage collections a second, by generation",
            "Generation 2 looks at everything and takes longest: now and then is normal, several a "
            "second cost CPU.",
            Query(
                per_second(series("python_gc_collections_total"), "generation"),
                "generation {{generation}}",
            ),
            unit="ops",
        ),
        line(
            "Web connections closed, by reason",
            "silent: no whole request came in time. crowded: there were too many, and the ones "
            "silent for longest made room. A few are normal; many: who connects, and why?",
            each(count, relay("web_connections_closed_total"), "reason"),
            bars=True,
        ),
        line(
            "Log lines left out",
            "The log is a pipe, and its reader stands still. Deliveries go on; these lines are "
            "lost. Look at what reads the log.",
            each(count, relay("log_lines_left_out_total"), "instance"),
            bars=True,
        ),
    ]


def _loop() -> list[Panel]:
    return [
        line(
            "How late the event loop is",
            "99 of a hundred probes were less late. All deliveries of a worker, its pages and "
            "probes share the loop: what blocks it holds up all of them.",
            Query(quantile(0.99, LOOP_LAG, "instance"), "{{instance}}"),
            unit="s",
            limit=0.5,
        ),
        line(
            "How late it is on average",
            "Rises with the load before the worst case does: the worker is short of CPU.",
            Query(
                f"{per_second(relay('event_loop_lag_seconds_sum'), 'instance')} / "
                f"{per_second(relay('event_loop_lag_seconds_count'), 'instance')}",
                "{{instance}}",
            ),
            unit="s",
        ),
    ]


def _group() -> list[Panel]:
    return [
        line(
            "Partitions by worker",
            "Round robin, so they differ by one at most. None for all: a rebalance. None for one: "
            "there are more workers than partitions.",
            each(largest, relay("assigned_partitions"), "consumer", "instance"),
            decimals=0,
        ),
        line(
            "Rebalances",
            "faust_rebalance_done_latency_count. One for each worker that comes or goes. Many, "
            "while none does: workers are lost sight of, by CPU or network.",
            each(count, series("faust_rebalance_done_latency_count"), "instance"),
            bars=True,
        ),
        line(
            "Intake stands still",
            "How long records have not flowed, had no position or were not fetched, while Kafka "
            "answers. Seconds are normal in a rebalance; at 140 s the worker ends.",
            each(largest, relay("intake_stopped_seconds"), "consumer", "instance"),
            unit="s",
            limit=100,
        ),
        timeline(
            "Rebalancing",
            "Whether Faust is in a rebalance, or recovers after one; deliveries pause. Seconds are "
            "normal.",
            Query(
                f"clamp_max({added(series('faust_total_rebalances'), 'instance')} + "
                f"{added(series('faust_total_rebalances_recovering'), 'instance')}, 1)",
                "{{instance}}",
            ),
            BUSY,
        ),
        line(
            "Time to commit",
            "Of Faust's commits, once a second where something finished: half of them, 99 of a "
            "hundred. In milliseconds. It rises with the brokers' load.",
            Query(quantile(0.5, COMMITS), "median"),
            Query(quantile(0.99, COMMITS), "99 %"),
            unit="ms",
        ),
        line(
            "Records handed to the agent a second",
            "faust_total_events_total, counted by records, not by batches. More than were "
            "delivered: records are read again after rebalances.",
            each(per_second, series("faust_total_events_total"), "instance"),
            unit="recps",
        ),
    ]


def _table() -> list[Panel]:
    return [
        line(
            "Entries",
            "What became of each order, on each worker, for DELIVERIES_RETENTION_HOURS. Estimated "
            "for RocksDB; 0 when the table is off.",
            each(added, relay("table_entries"), "consumer", "table", "instance"),
            decimals=0,
            width=6,
        ),
        timeline(
            "Recovering",
            "While the table is read from its changelog, after a start or a rebalance, deliveries "
            "wait.",
            each(largest, relay("table_recovering"), "consumer", "instance"),
            BUSY,
            width=6,
        ),
        line(
            "Last recovery",
            "How long deliveries last waited for the table. It grows with the orders of "
            "DELIVERIES_RETENTION_HOURS; RocksDB reads only what is new.",
            each(largest, relay("table_recovery_seconds"), "consumer", "instance"),
            unit="s",
            width=6,
        ),
        line(
            "Partitions without a table",
            "Their store on disk failed, as the log says. Deliveries go on; delivered events may "
            "be sent again. The next rebalance opens the stores again.",
            each(largest, relay("table_partitions_off"), "consumer", "instance"),
            decimals=0,
            width=6,
        ),
    ]
