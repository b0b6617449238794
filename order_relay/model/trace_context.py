"""Checks and forwards W3C trace context (https://www.w3.org/TR/trace-context/).

The relay records no spans, so it forwards ``traceparent`` unchanged (docs/decisions/0013). An
invalid trace context is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"

# The specification requires at least 512. Four times that is still far below the limits of servers:
# a target must not refuse an order because of its tracestate.
MAX_TRACESTATE_LENGTH = 2048
MAX_TRACESTATE_MEMBERS = 32
# When it must be shortened, longer members are dropped first.
LONG_MEMBER_LENGTH = 128

# Version 00, and what every later version must match; it may have more parts.
_TRACEPARENT = re.compile(
    r"(?P<version>[0-9a-f]{2})-(?P<trace_id>[0-9a-f]{32})-(?P<parent_id>[0-9a-f]{16})"
    r"-[0-9a-f]{2}(?P<more>-[!-~]{0,72})?"
)
_MEMBER = re.compile(r"(?P<key>[a-z0-9][a-z0-9_\-*/@]{0,255})=[ -+\--<>-~]{0,255}[!-+\--<>-~]")


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A valid trace context: visible ASCII and spaces only.

    Attributes:
        traceparent: The header's value, unchanged.
        trace_id: The trace id in it: 32 hexadecimal digits.
        tracestate: The data of tracing systems; "" without any.
    """

    traceparent: str
    trace_id: str
    tracestate: str = ""

    def headers(self) -> tuple[tuple[str, str], ...]:
        """Return it as headers of a request."""
        if self.tracestate:
            return (TRACEPARENT, self.traceparent), (TRACESTATE, self.tracestate)
        return ((TRACEPARENT, self.traceparent),)

    def record_headers(self) -> tuple[tuple[str, bytes], ...]:
        """Return it as headers of a Kafka record."""
        return tuple((name, value.encode()) for name, value in self.headers())


def of_record(headers: Iterable[tuple[str, bytes | None]]) -> TraceContext | None:
    """Return the trace context of a Kafka record; ``None`` without a valid one.

    The last of several traceparents counts, as is usual in Kafka.
    """
    traceparent: bytes | None = None
    states: list[bytes] = []
    for name, value in headers:
        if name == TRACEPARENT:
            traceparent = value
        elif name == TRACESTATE and value is not None:
            states.append(value)
    if traceparent is None:
        return None
    # Latin-1 decodes any bytes; the check refuses everything but ASCII.
    return _checked(traceparent.decode("latin-1"), [state.decode("latin-1") for state in states])


def of_request(traceparents: Iterable[str], tracestates: Iterable[str]) -> TraceContext | None:
    """Return the trace context of an HTTP request from the values of its two headers.

    ``None`` without a valid one. Two traceparents are not valid.
    """
    given = list(traceparents)
    return _checked(given[0], tracestates) if len(given) == 1 else None


def trace_id(headers: Iterable[tuple[str, bytes | None]]) -> str | None:
    """Return the trace id of a Kafka record; ``None`` without a valid trace context."""
    found = of_record(headers)
    return found.trace_id if found is not None else None


def trace_headers(carrier: Mapping[str, str]) -> tuple[tuple[str, bytes], ...]:
    """Return the record headers for publishing an event with a trace; none without a valid one.

    ``carrier`` contains ``traceparent`` and ``tracestate``: the headers of the request that placed
    the order, or what OpenTelemetry's ``inject`` fills. Names are case-insensitive.
    """
    by_name = {name.lower(): value for name, value in carrier.items()}
    found = _checked(by_name.get(TRACEPARENT, ""), [by_name.get(TRACESTATE, "")])
    return found.record_headers() if found is not None else ()


def _checked(traceparent: str, tracestates: Iterable[str]) -> TraceContext | None:
    found = _TRACEPARENT.fullmatch(traceparent.strip(" \t"))
    if (
        found is None
        or found["version"] == "ff"
        or (found["version"] == "00" and found["more"] is not None)
        or not found["trace_id"].strip("0")
        or not found["parent_id"].strip("0")
    ):
        return None
    return TraceContext(found[0], found["trace_id"], _combined(tracestates))


def _combined(tracestates: Iterable[str]) -> str:
    """Join several headers, as HTTP does; "" if any part is invalid."""
    members = [
        member
        for state in tracestates
        for part in state.split(",")
        if (member := part.strip(" \t"))  # empty members are allowed
    ]
    keys = set()
    for member in members:
        found = _MEMBER.fullmatch(member)
        if found is None or found["key"] in keys:
            return ""
        keys.add(found["key"])
    return _shortened(members) if len(members) <= MAX_TRACESTATE_MEMBERS else ""


def _shortened(members: list[str]) -> str:
    """Drop whole members, as the specification says: first the long ones, then the last ones."""
    if len(",".join(members)) > MAX_TRACESTATE_LENGTH:
        members = [member for member in members if len(member) <= LONG_MEMBER_LENGTH]
    while len(",".join(members)) > MAX_TRACESTATE_LENGTH:
        members.pop()
    return ",".join(members)
