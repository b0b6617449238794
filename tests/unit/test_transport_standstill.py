"""What of the intake stands still, as it is seen from outside."""

from dataclasses import replace

import pytest
from faust.types import TP

from order_relay.kafka.consumer.standstill import Intake, standstill

ONE, TWO = TP("orders", 0), TP("orders", 1)
BEFORE = Intake(
    generation=3,
    errors=1,
    flowing=True,
    rounds=10,
    waiting_for_room=False,
    commits=5,
    fetches={ONE: (7, 1000), TWO: (9, 1000)},
    ready={ONE, TWO},
)
MOVED = replace(BEFORE, rounds=12, commits=7, fetches={ONE: (7, 1200), TWO: (9, 1200)})


def test_an_intake_that_moves_does_not_stand_still() -> None:
    """Fetches are answered, though nothing is there to be read."""
    assert standstill(BEFORE, MOVED) is None


def test_a_worker_without_partitions_does_not_stand_still() -> None:
    """There are more workers than partitions."""
    assert standstill(replace(BEFORE, fetches={}), replace(MOVED, fetches={})) is None


@pytest.mark.parametrize(
    ("now", "fault"),
    [
        (replace(MOVED, fetches=None), "no assignment"),
        (replace(MOVED, flowing=False), "flow is suspended"),
        (replace(MOVED, fetches={ONE: None, TWO: (9, 1200)}), "no position of orders-0"),
        (replace(MOVED, ready={ONE}), "no position of orders-1"),
        (replace(MOVED, commits=5), "nothing is committed"),
        (replace(MOVED, rounds=10), "nothing is fetched"),
        (
            replace(MOVED, fetches={ONE: (7, 1000), TWO: (9, 1200)}),
            "no answer to a fetch of orders-0",
        ),
        (
            replace(MOVED, waiting_for_room=True, fetches=BEFORE.fetches),
            "no answer to a fetch of orders-0, orders-1",
        ),
    ],
)
def test_what_stands_still_is_named(now: Intake, fault: str) -> None:
    """Each step between Kafka and the streams, with its partitions."""
    assert standstill(BEFORE, now) == fault


@pytest.mark.parametrize(
    "now",
    [
        replace(MOVED, flowing=False, generation=4),
        replace(MOVED, flowing=False, errors=2),
        replace(MOVED, rounds=10, waiting_for_room=True),
    ],
    ids=["a new generation", "an error that is tried again", "full streams"],
)
def test_what_has_a_reason_does_not_count(now: Intake) -> None:
    """The group moved on, the log says what is wrong, or the logger is slower than Kafka."""
    assert standstill(BEFORE, now) is None
