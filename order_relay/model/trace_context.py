"""Checks and forwards W3C trace context (https://www.w3.org/TR/trace-context/).

Without TRACING the relay records no spans and forwards ``traceparent`` unchanged; with it, each
span of the relay is the parent of what it sends (docs/decisions/0013). An invalid trace context is
dropped.
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

# Trace id, parent id and flags. Later versions than 00 may have more parts; there is no version ff.
_IDS = r"-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
_TRACEPARENT = re.compile(rf"00{_IDS}|(?!00|ff)[0-9a-f]{{2}}{_IDS}(?:-[!-~]{{0,72}})?")
_TRACE_ID = slice(3, 35)
_MEMBER = re.compile(r"([a-z0-9][a-z0-9_\-*/@]{0,255})=[ -+\--<>-~]{0,255}[!-+\--<>-~]")


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A valid trace context: visible ASCII and spaces only.

    Attributes:
        traceparent: The header's value, unchanged.
        tracestate: The data of tracing systems; "" without any.
    """

    traceparent: str
    tracestate: str = ""

    @property
    def trace_id(self) -> str:
        """The trace id: 32 hexadecimal digits."""
        return self.traceparent[_TRACE_ID]

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
    states: list[str] = []
    for name, value in headers:
        if name == TRACEPARENT:
            traceparent = value
        elif name == TRACESTATE and value is not None:
            # Latin-1 decodes any bytes; the check refuses everything but ASCII.
            states.append(value.decode("latin-1"))
    return _checked(traceparent.decode("latin-1"), states) if traceparent else None


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


def with_trace_context(
    headers: Iterable[tuple[str, bytes | None]], trace: TraceContext
) -> tuple[tuple[str, bytes | None], ...]:
    """Return the headers of a Kafka record with ``trace`` in place of their trace context."""
    others = (header for header in headers if header[0] not in (TRACEPARENT, TRACESTATE))
    return (*others, *trace.record_headers())


def trace_headers(carrier: Mapping[str, str]) -> tuple[tuple[str, bytes], ...]:
    """Return the record headers for publishing an event with a trace; none without a valid one.

    ``carrier`` contains ``traceparent`` and ``tracestate``: the headers of the request that placed
    the order, or what OpenTelemetry's ``inject`` fills. Names are case-insensitive.
    """
    by_name = {name.lower(): value for name, value in carrier.items()}
    found = _checked(by_name.get(TRACEPARENT, ""), [by_name.get(TRACESTATE, "")])
    return found.record_headers() if found is not None else ()


def _checked(traceparent: str, tracestates: Iterable[str]) -> TraceContext | None:
    traceparent = traceparent.strip(" \t")
    if not _TRACEPARENT.fullmatch(traceparent):
        return None
    return TraceContext(traceparent, _combined(tracestates))


def _combined(tracestates: Iterable[str]) -> str:
    """Join several headers, as HTTP does; "" if any part is invalid, or it is too long."""
    parts = [part.strip(" \t") for state in tracestates for part in state.split(",")]
    members = [part for part in parts if part]  # empty members are allowed
    keys = {found[1] for member in members if (found := _MEMBER.fullmatch(member))}
    state = ",".join(members)
    # Each member is valid, and each key occurs once.
    valid = len(keys) == len(members) <= MAX_TRACESTATE_MEMBERS
    return state if valid and len(state) <= MAX_TRACESTATE_LENGTH else ""
