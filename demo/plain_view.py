"""One line now and then, for when the output is not a terminal."""

from __future__ import annotations

from demo.formatting import clock, duration, lag, number, parts
from demo.snapshot import Phase, Snapshot

EVERY_SECONDS = 2.0


def plain_line(now: Snapshot) -> str:
    """Say how things are, in one line."""
    if now.phase is Phase.STARTING:
        return f"{clock(now.elapsed_seconds)}  worker {now.worker}"
    balance, metrics = now.balance, now.metrics
    paid = number(balance.paid) + (f"/{now.goal:,}" if now.goal is not None else "")
    reasons = parts(balance.dead_letter_reasons)
    fields = [
        clock(now.elapsed_seconds),
        f"paid {paid}",
        f"delivered {balance.delivered:,}",
        f"dead-lettered {balance.dead_lettered:,}" + (f" ({reasons})" if reasons else ""),
        f"saved {balance.saved:,}",
        f"in flight {number(metrics.in_flight)}",
        f"retried {number(metrics.retries)}",
        f"lag {lag(metrics.lag)}",
        f"breaker {metrics.breaker or '-'}",
        f"worker {now.worker}",
    ]
    fields += [
        f"{one.name} {one.handled:,}, dead-lettered {one.dead_lettered:,} of {one.published:,}"
        for one in now.consumers
    ]
    if now.times is not None:
        times = (now.times.p50, now.times.p95, now.times.p99)
        fields.append("p50/p95/p99 " + " / ".join(duration(seconds) for seconds in times))
    if now.kafka_is_down:
        fields.append("Kafka is down")
    if now.logger.is_down:
        fields.append("the logger is down")
    return "  ".join(fields)
