"""Figures as words, the same in the live view, the plain lines and the ledger."""

from __future__ import annotations

from collections.abc import Mapping

from demo.delivery_times import Percentiles


def duration(seconds: float) -> str:
    """A short time: ``34 ms``, ``1.2 s``, ``2 min 05 s``."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def clock(seconds: float) -> str:
    """A running time: ``02:05``, ``1:02:05``."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"


def percentiles(times: Percentiles | None) -> str:
    """The three figures in one line."""
    if times is None:
        return "-"
    return f"p50 {duration(times.p50)}   p95 {duration(times.p95)}   p99 {duration(times.p99)}"


def parts(numbers: Mapping[str, int]) -> str:
    """What a sum is made of: ``rejected 7, invalid_json 1``."""
    return ", ".join(f"{name} {number:,}" for name, number in numbers.items() if number)


def lag(by_partition: Mapping[int, int]) -> str:
    """Records behind, partition by partition."""
    return " ".join(f"{number:,}" for number in by_partition.values()) or "-"


def number(value: int | None) -> str:
    """A count, or a dash where there is none."""
    return "-" if value is None else f"{value:,}"
