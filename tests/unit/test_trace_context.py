"""W3C trace context: what is taken over, and what breaks the rules and is left behind."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from order_relay.model.trace_context import (
    LONG_MEMBER_LENGTH,
    MAX_TRACESTATE_LENGTH,
    TraceContext,
    of_record,
    of_request,
    trace_headers,
    trace_id,
)

TRACE_ID = "12345678901234567890123456789012"
PARENT = f"00-{TRACE_ID}-1234567890123456-01"


def from_record(traceparent: bytes | None, *states: bytes | None) -> TraceContext | None:
    """The trace context of a record with these headers, among others."""
    headers = [("event-id", b"1"), ("traceparent", traceparent)]
    return of_record([*headers, *(("tracestate", state) for state in states), ("x", None)])


def state_of(*states: str) -> str:
    """The tracestate that is passed on."""
    found = of_request([PARENT], states)
    assert found is not None
    return found.tracestate


def test_it_is_passed_on_unchanged() -> None:
    """Both headers go on as they came, to the request and to a record."""
    found = from_record(PARENT.encode(), b"rojo=00f067aa0ba902b7,congo=t61rcWkgMzE")
    assert found is not None
    assert found.trace_id == TRACE_ID
    assert found.headers() == (
        ("traceparent", PARENT),
        ("tracestate", "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"),
    )
    assert of_record(found.record_headers()) == found


def test_without_a_tracestate_none_is_sent() -> None:
    """An empty header says nothing, and is not made."""
    for states in ((), (b"",), (b" , ",), (None,)):
        found = from_record(PARENT.encode(), *states)
        assert found is not None
        assert found.headers() == (("traceparent", PARENT),)


@pytest.mark.parametrize(
    "traceparent",
    [
        f"00-{TRACE_ID}-1234567890123456-00",
        f"00-{TRACE_ID}-1234567890123456-ff",
        f"cc-{TRACE_ID}-1234567890123456-01",
        f"cc-{TRACE_ID}-1234567890123456-01-what-the-future-will-be-like",
        f" \t{PARENT}\t ",
    ],
)
def test_valid_ones(traceparent: str) -> None:
    """Any flags, later versions with further parts, and blanks around it."""
    found = of_request([traceparent], [])
    assert found is not None
    assert found.traceparent == traceparent.strip()
    assert found.trace_id == TRACE_ID


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        "00",
        f"{PARENT}.",
        f"{PARENT}-what-the-future-will-be-like",
        f"cc-{TRACE_ID}-1234567890123456-01.what-the-future-will-be-like",
        f"cc-{TRACE_ID}-1234567890123456-01-{'x' * 500}",
        f"ff-{TRACE_ID}-1234567890123456-01",
        f".0-{TRACE_ID}-1234567890123456-01",
        f"000-{TRACE_ID}-1234567890123456-01",
        f"0-{TRACE_ID}-1234567890123456-01",
        f"00-{'0' * 32}-1234567890123456-01",
        f"00-{TRACE_ID[:-1]}.-1234567890123456-01",
        f"00-{TRACE_ID}3-1234567890123456-01",
        f"00-{TRACE_ID[:-1]}-1234567890123456-01",
        f"00-{'A' * 32}-1234567890123456-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"00-{TRACE_ID}-123456789012345.-01",
        f"00-{TRACE_ID}-1234567890123456-.0",
        f"00-{TRACE_ID}-1234567890123456-001",
        f"00-{TRACE_ID}-1234567890123456-1",
        f"{PARENT}\r\nX-Injected: 1",
        f"{PARENT}\n",
        f"cc-{TRACE_ID}-1234567890123456-01-a\r\nX-Injected: 1",
        f"cc-{TRACE_ID}-1234567890123456-01-\u00e9",
        PARENT.replace("1", "\u0661"),
    ],
)
def test_what_breaks_the_rules_is_not_passed_on(traceparent: str) -> None:
    """The working group's own cases, and what would end the header's line."""
    assert of_request([traceparent], ["foo=1"]) is None
    assert from_record(traceparent.encode(), b"foo=1") is None
    assert trace_id([("traceparent", traceparent.encode())]) is None


def test_two_in_a_request_are_not_valid_and_in_a_record_the_last_one_counts() -> None:
    """As the working group's tests want it for HTTP, and as it is for every header in Kafka."""
    other = PARENT.replace("1", "2")
    assert of_request([PARENT, PARENT], []) is None
    assert of_request([], ["foo=1"]) is None
    assert trace_id([("traceparent", b"?"), ("traceparent", PARENT.encode())]) == TRACE_ID
    assert trace_id([("traceparent", other.encode()), ("traceparent", b"?")]) is None
    assert trace_id([("traceparent", None)]) is None
    assert trace_id([]) is None


def test_several_tracestates_are_one() -> None:
    """They are put together in their order; blanks and empty members say nothing."""
    assert state_of("foo=1,bar=2", "", "rojo=1 \t, \tcongo=2 ", ",", "baz=3") == (
        "foo=1,bar=2,rojo=1,congo=2,baz=3"
    )
    assert state_of("foo=  a b") == "foo=  a b"


@pytest.mark.parametrize(
    "state",
    ["foo", "=1", "foo=", "FOO=1", "foo =1", "foo.bar=1", "@foo=1", "foo=a=b", "foo=\u00e9",
     "foo=1\r\nX-Injected: 1", "foo=a\tb", "foo=1,foo=2", f"{'k' * 257}=1", f"foo={'v' * 257}",
     ",".join(f"bar{n}=1" for n in range(33))],
)  # fmt: skip
def test_a_tracestate_that_breaks_the_rules_is_left_out(state: str) -> None:
    """All of it, and the traceparent goes on without it."""
    assert state_of("rojo=1", state) == ""


def test_a_long_tracestate_loses_whole_members() -> None:
    """Those over 128 characters first, then the last ones; what is short enough stays whole."""
    long = f"long={'x' * LONG_MEMBER_LENGTH}"
    assert state_of(long) == long
    members = [f"k{n}={'v' * 90}" for n in range(30)]
    kept = state_of(",".join([long, *members]))
    assert len(kept) <= MAX_TRACESTATE_LENGTH
    assert kept.split(",") == members[: len(kept.split(","))]
    assert len(",".join(members[: len(kept.split(",")) + 1])) > MAX_TRACESTATE_LENGTH


def test_headers_to_publish_with_come_from_any_carrier() -> None:
    """Names in any case; none without a valid traceparent."""
    assert trace_headers({"Traceparent": PARENT, "TRACESTATE": "foo=1", "Host": "shop"}) == (
        ("traceparent", PARENT.encode()),
        ("tracestate", b"foo=1"),
    )
    assert trace_headers({"traceparent": "?", "tracestate": "foo=1"}) == ()
    assert trace_headers({}) == ()


@given(st.binary(max_size=80), st.lists(st.binary(max_size=80), max_size=3))
def test_nothing_ever_gets_into_a_header_that_could_end_it(
    parent: bytes, states: list[bytes]
) -> None:
    """Whatever a record holds: visible ASCII and blanks, or nothing."""
    for traceparent in (parent, PARENT.encode(), PARENT.replace("00-", "cc-").encode() + parent):
        found = of_record(
            [("traceparent", traceparent), *(("tracestate", b"a=" + state) for state in states)]
        )
        if found is not None:
            assert all(re.fullmatch(r"[ -~]+", value) for _, value in found.headers())
