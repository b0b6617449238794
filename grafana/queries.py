"""How the dashboards ask Prometheus: which series, of which workers, over which time."""

from __future__ import annotations

JOB = 'job="$job"'
WORKER = 'instance=~"$worker"'
CONSUMER = 'consumer=~"$consumer"'
# What is a worker's, whichever consumers it runs.
OF_WORKERS = ("published_", "fallback_", "event_loop_", "web_", "log_", "build_")
ALERTS = 'ALERTS{alertname=~"OrderRelay.*", alertstate="firing"}'


def series(name: str, *matchers: str) -> str:
    """Name the series of the chosen workers."""
    return f"{name}{{{', '.join([JOB, WORKER, *matchers])}}}"


def relay(name: str, *matchers: str) -> str:
    """Name a metric of the relay's own, of the chosen workers and consumers."""
    chosen = () if name.startswith(OF_WORKERS) else (CONSUMER,)
    return series(f"order_relay_{name}", *chosen, *matchers)


def per_second(metric: str, *by: str) -> str:
    """Ask how often a counter went up, over all workers unless told otherwise."""
    return f"sum{_by(by)} (rate({metric}[$__rate_interval]))"


def count(metric: str, *by: str) -> str:
    """Ask how many times a counter went up since the point before, over all workers.

    So it is where points are as far apart as ``$__rate_interval`` is long, or nearly: in bars.
    """
    return f"sum{_by(by)} (increase({metric}[$__rate_interval]))"


def total(metric: str, *by: str) -> str:
    """Ask how many times a counter went up in the time that the dashboard shows.

    What a worker counted before it was first scraped has no sample before it that it could be more
    than: of a worker that was started in that time the counter counts whole.
    """
    went_up = f"increase({metric}[$__range])"
    just_started = f"time() - {series('process_start_time_seconds')} < $__range_s"
    whole = f"({metric} and on (job, instance) {just_started})"
    return f"sum{_by(by)} ({whole} > {went_up} or {went_up})"


def recorded(name: str) -> str:
    """Name a series that a rule of ``prometheus/alerts.yml`` records, of the chosen consumers."""
    return f"order_relay:{name}{{{JOB}, {CONSUMER}}}"


def share_in_time(bound: str, window: str, *by: str) -> str:
    """Ask for the share of records delivered within a bucket's bound; dead letters are not."""

    def went_up(name: str, *matchers: str) -> str:
        return f"sum{_by(by)} (rate({relay(name, *matchers)}[{window}]))"

    delivered = went_up("paid_to_delivered_seconds_count")
    dead = went_up("deliveries_total", 'outcome="dead_lettered"')
    in_time = went_up("paid_to_delivered_seconds_bucket", f'le="{bound}"')
    return f"{in_time} / ({delivered} + {dead} > 0)"


def quantile(share: float, histogram: str, *by: str) -> str:
    """Ask below which value this share of a histogram's observations was."""
    return f"histogram_quantile({share}, {per_second(histogram, 'le', *by)})"


def largest(metric: str, *by: str) -> str:
    """Ask for the largest: for ages, and for what every worker reports of one shared thing."""
    return f"max{_by(by)} ({metric})"


def added(metric: str, *by: str) -> str:
    """Ask for the sum: for what each worker has of its own."""
    return f"sum{_by(by)} ({metric})"


def _by(labels: tuple[str, ...]) -> str:
    return f" by ({', '.join(labels)})" if labels else ""
