"""The tables that the benchmark prints."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from statistics import median

from benchmarks.measure import Result

_ROW = "{:<24}{:>12}{:>15}{:>14}{:>15}{:>12}"


def machine() -> str:
    """What the figures depend on, in a line."""
    packages = ", ".join(
        f"{name} {version(name)}" for name in ("faust-streaming", "aiokafka", "aiohttp", "uvloop")
    )
    load = os.getloadavg()[0]
    return (
        f"{os.cpu_count()} cores (load {load:.1f} before), "
        f"Python {platform.python_version()}, {packages}"
    )


def comparison(relay: Sequence[Result], unordered: Sequence[Result], one_at_a_time: Result) -> str:
    """The table of one latency: medians, and medians of the ratios pair by pair."""
    lines = [
        _ROW.format("", "records/s", "to unordered", "CPU us/rec", "to unordered", "peak MiB"),
        _row(
            "relay",
            relay,
            _ratio(relay, unordered, lambda result: result.records_per_second),
            _ratio(relay, unordered, lambda result: result.cpu_us),
        ),
        _row("plain, unordered", unordered),
        _row("plain, one at a time", [one_at_a_time]),
    ]
    return "\n".join(lines)


def table_comparison(results: Mapping[str, Sequence[Result]]) -> str:
    """The table of one latency; ratios are to the first of ``results``, pair by pair."""
    (first_name, first), *others = results.items()
    lines = [
        _ROW.format("", "records/s", "to the first", "CPU us/rec", "to the first", "peak MiB"),
        _row(first_name, first),
    ]
    for name, result in others:
        speed = _ratio(result, first, lambda one: one.records_per_second)
        lines.append(_row(name, result, speed, _ratio(result, first, lambda one: one.cpu_us)))
    return "\n".join(lines)


def _row(name: str, results: Sequence[Result], speed: str = "", cpu: str = "") -> str:
    return _ROW.format(
        name,
        f"{median(result.records_per_second for result in results):,.0f}",
        speed,
        f"{median(result.cpu_us for result in results):.0f}",
        cpu,
        f"{max(result.peak_rss_mib for result in results):.0f}",
    )


def _ratio(ours: Sequence[Result], theirs: Sequence[Result], of: Callable[[Result], float]) -> str:
    return f"x {median(of(a) / of(b) for a, b in zip(ours, theirs, strict=True)):.2f}"
