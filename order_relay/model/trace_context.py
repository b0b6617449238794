"""W3C trace context (https://www.w3.org/TR/trace-context/): taken over, checked, passed on.

The relay records no spans, so it is a participant that forwards: ``traceparent`` goes on as it
came (docs/decisions/0013). What breaks the rules is not passed on; nothing else happens to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"

# At least 512 have to be passed on. Four times that is still far under what a server takes: a
# logger must not refuse an order for its tracestate.
MAX_TRACESTATE_LENGTH = 2048
MAX_TRACESTATE_MEMBERS = 32
# Where one has to shorten it, longer members go first.
LONG_MEMBER_LENGTH = 128

# Version 00, and what must hold of every later one, whose further parts nobody knows yet.
_TRACEPARENT = re.compile(
    r"(?P<version>[0-9a-f]{2})-(?P<trace_id>[0-9a-f]{32})-(?P<parent_id>[0-9a-f]{16})"
    r"-[0-9a-f]{2}(?P<more>-[!-~]{0,72})?"
)
_MEMBER = re.compile(r"(?P<key>[a-z0-9][a-z0-9_\-*/@]{0,255})=[ -+\--<>-~]{0,255}[!-+\--<>-~]")


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A valid trace context; all of it is visible ASCII and spaces.

    Attributes:
        traceparent: As it came.
        trace_id: The trace's id within it: 32 hexadecimal digits.
        tracestate: What the tracing systems on the way have to say; "" for nothing.
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

    Of several traceparents the last one counts, as everywhere in Kafka.
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
    # Whatever is no ASCII is refused with the rest that breaks the rules.
    return _checked(traceparent.decode("latin-1"), [state.decode("latin-1") for state in states])


def of_request(traceparents: Iterable[str], tracestates: Iterable[str]) -> TraceContext | None:
    """Return the trace context of an HTTP request, by the values of its two headers.

    ``None`` without a valid one. Two traceparents are not valid.
    """
    given = list(traceparents)
    return _checked(given[0], tracestates) if len(given) == 1 else None


def trace_id(headers: Iterable[tuple[str, bytes | None]]) -> str | None:
    """Return the trace's id of a Kafka record; ``None`` without a valid trace context."""
    found = of_record(headers)
    return found.trace_id if found is not None else None


def trace_headers(carrier: Mapping[str, str]) -> tuple[tuple[str, bytes], ...]:
    """Return a trace context as headers to publish an event with; none without a valid one.

    ``carrier`` holds ``traceparent`` and ``tracestate``: the headers of the order's own request,
    or what OpenTelemetry's ``inject`` fills. Names are taken in any case.
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
    """Put several headers together, as HTTP does; "" if anything of them breaks the rules."""
    members = [
        member
        for state in tracestates
        for part in state.split(",")
        if (member := part.strip(" \t"))  # empty members are allowed, and say nothing
    ]
    keys = set()
    for member in members:
        found = _MEMBER.fullmatch(member)
        if found is None or found["key"] in keys:
            return ""
        keys.add(found["key"])
    return _shortened(members) if len(members) <= MAX_TRACESTATE_MEMBERS else ""


def _shortened(members: list[str]) -> str:
    """Leave out whole members, as the specification says: the long ones, then the last ones."""
    if len(",".join(members)) > MAX_TRACESTATE_LENGTH:
        members = [member for member in members if len(member) <= LONG_MEMBER_LENGTH]
    while len(",".join(members)) > MAX_TRACESTATE_LENGTH:
        members.pop()
    return ",".join(members)
