"""W3C trace context: what is passed on, and what breaks the rules and is dropped."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from order_relay.model.trace_context import (
    MAX_TRACESTATE_LENGTH,
    TraceContext,
    of_record,
    of_request,
    trace_headers,
    trace_id,
)

TRACE_ID = "12345678901234567890123456789012"
PARENT = f"00-{TRACE_ID}-1234567890123456-01"
LATER = PARENT.replace("00-", "cc-")
LONGEST = ",".join(f"k{n}={'v' * 252}" for n in range(8))
assert len(LONGEST) == MAX_TRACESTATE_LENGTH - 1


def from_record(traceparent: bytes | None, *states: bytes | None) -> TraceContext | None:
    """The trace context of a record with these and other headers."""
    headers = [("event-id", b"1"), ("traceparent", traceparent)]
    return of_record([*headers, *(("tracestate", state) for state in states), ("x", None)])


@pytest.mark.parametrize(
    "traceparent",
    [
        PARENT,
        f"00-{TRACE_ID}-1234567890123456-00",
        f"00-{TRACE_ID}-1234567890123456-ff",
        LATER,
        f"{LATER}-what-the-future-will-be-like",
        f" \t{PARENT}\t ",
    ],
)
def test_it_is_passed_on_unchanged(traceparent: str) -> None:
    """Any flags, later versions with more parts, and blanks around it, to requests and records."""
    state = "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"
    found = from_record(traceparent.encode(), state.encode())
    assert found is not None
    assert found.headers() == (("traceparent", traceparent.strip()), ("tracestate", state))
    assert of_record(found.record_headers()) == of_request([traceparent], [state]) == found
    assert found.trace_id == trace_id([("traceparent", traceparent.encode())]) == TRACE_ID


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        "00",
        f"{PARENT}.",
        f"{PARENT}-what-the-future-will-be-like",
        f"{LATER}.what-the-future-will-be-like",
        f"{LATER}-{'x' * 500}",
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
        f"{LATER}-a\r\nX-Injected: 1",
        f"{LATER}-\u00e9",
        PARENT.replace("1", "\u0661"),
    ],
)
def test_what_breaks_the_rules_is_not_passed_on(traceparent: str) -> None:
    """The working group's cases, and text that would end a header's line."""
    assert of_request([traceparent], ["foo=1"]) is None
    assert from_record(traceparent.encode(), b"foo=1") is None
    assert trace_id([("traceparent", traceparent.encode())]) is None
    assert trace_headers({"traceparent": traceparent, "tracestate": "foo=1"}) == ()


def test_two_in_a_request_are_not_valid_and_in_a_record_the_last_one_counts() -> None:
    """As in the working group's tests for HTTP, and as for every header in Kafka."""
    assert of_request([PARENT, PARENT], []) is None
    assert of_request([], ["foo=1"]) is None
    assert trace_id([("traceparent", b"?"), ("traceparent", PARENT.encode())]) == TRACE_ID
    assert trace_id([("traceparent", PARENT.encode()), ("traceparent", b"?")]) is None
    assert trace_id([("traceparent", None)]) is None
    assert trace_id([]) is None


@pytest.mark.parametrize(
    ("states", "passed_on"),
    [
        # Several are joined in their order; blanks and empty members are dropped.
        (["foo=1,bar=2", "", "rojo=1 \t, \tcongo=2 ", ",", "baz=3"],
         "foo=1,bar=2,rojo=1,congo=2,baz=3"),
        (["foo=  a b"], "foo=  a b"),
        ([LONGEST], LONGEST),
        *(([], ""), ([""], ""), ([" , "], "")),
        # One that breaks the rules, or is too long, drops all.
        *((["rojo=1", state], "")
          for state in ["foo", "=1", "foo=", "FOO=1", "foo =1", "foo.bar=1", "@foo=1", "foo=a=b",
                        "foo=\u00e9", "foo=1\r\nX-Injected: 1", "foo=a\tb", "foo=1,foo=2",
                        f"{'k' * 257}=1", f"foo={'v' * 257}", LONGEST,
                        ",".join(f"bar{n}=1" for n in range(33))]),
    ],
)  # fmt: skip
def test_tracestates(states: list[str], passed_on: str) -> None:
    """The traceparent is passed on, also without one."""
    found = from_record(PARENT.encode(), *(state.encode() for state in states), None)
    assert found == of_request([PARENT], states) == TraceContext(PARENT, passed_on)
    assert len(found.headers()) == (2 if passed_on else 1)


def test_headers_to_publish_with_come_from_any_carrier() -> None:
    """Names in any case."""
    assert trace_headers({"Traceparent": PARENT, "TRACESTATE": "foo=1", "Host": "shop"}) == (
        ("traceparent", PARENT.encode()),
        ("tracestate", b"foo=1"),
    )
    assert trace_headers({}) == ()


@given(st.binary(max_size=80), st.lists(st.binary(max_size=80), max_size=3))
def test_nothing_ever_gets_into_a_header_that_could_end_it(
    parent: bytes, states: list[bytes]
) -> None:
    """From any record: visible ASCII and blanks, or nothing."""
    for traceparent in (parent, PARENT.encode(), LATER.encode() + parent):
        found = of_record(
            [("traceparent", traceparent), *(("tracestate", b"a=" + state) for state in states)]
        )
        if found is not None:
            assert all(re.fullmatch(r"[ -~]+", value) for _, value in found.headers())
