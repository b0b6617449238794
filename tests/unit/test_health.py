"""Liveness by progress, and readiness."""

import pytest

from agents.order_logging import order_logging
from order_relay import Consumer
from order_relay.deliveries.table import DeliveriesTable
from order_relay.delivery.answer import RetryPolicy
from order_relay.handlers.function import FunctionHandler
from order_relay.monitoring.health import INTAKE_STALL_SECONDS
from order_relay.settings import load_settings
from tests.support.runtimes import runtime
from tests.support.standing_health import StandingDeliveries, standing_health

STALL = 100.0  # 60 s of Retry-After, an attempt of 10 s, and 30 s to spare


class Watched:
    """Health of an idle worker that Kafka answers, with all that it looks at."""

    def __init__(self, longest_backoff_seconds: float = 10.0) -> None:
        self.now = 0.0
        self.excused = False
        self.deliveries = StandingDeliveries()
        self.health = standing_health(
            self.deliveries,
            clock=lambda: self.now,
            excused=lambda: self.excused,
            consumer_retry_max_interval_ms=int(longest_backoff_seconds * 1000),
        )

    def work(self, kind: str, records: int = 3) -> None:
        """So many records wait: held by the relay, or unfinished in Kafka."""
        self.deliveries.queued = records * (kind == "held")
        self.health.unfinished = records * (kind == "unfinished")

    def excuse(self, reason: str, *, given: bool) -> None:
        """A reason for a standstill begins or ends."""
        self.deliveries.breaker.closed = not (given and reason == "breaker")
        self.deliveries.paused = given and reason == "paused"
        self.excused = given and reason == "excused"

    def pass_time(self, seconds: float, *, kafka_answers: bool = True) -> None:
        self.now += seconds
        if kafka_answers:
            self.health.kafka_seen_at = self.now

    @property
    def live(self) -> bool:
        return self.health.live().ok

    def lives_for(self, seconds: float, **options: bool) -> bool:
        """Whether it is alive for so long, and a second later it is not."""
        self.pass_time(seconds, **options)
        still = self.live
        self.pass_time(1, **options)
        return still and not self.live


WORK = pytest.mark.parametrize("work", ["held", "unfinished"])


@WORK
def test_it_fails_when_deliveries_stand_still(work: str) -> None:
    """It fails once work has waited for longer than a working relay can be silent."""
    watched = Watched()
    watched.work(work)
    assert watched.lives_for(STALL)
    assert watched.health.live().reasons == {
        "work_waiting": 3, "idle_seconds": STALL + 1, "stalled_after_seconds": STALL,
        "breaker_closed": True,
    }  # fmt: skip
    # Any attempt that ended restarts the time.
    watched.deliveries.last_activity = watched.now
    assert watched.lives_for(STALL)


@pytest.mark.parametrize(
    ("backoff_seconds", "stall_seconds"), [(10.0, STALL), (60.0, STALL), (600.0, 640.0)]
)
def test_a_long_backoff_is_not_a_standstill(backoff_seconds: float, stall_seconds: float) -> None:
    """A record may wait as long as the settings, or Retry-After, allow."""
    watched = Watched(longest_backoff_seconds=backoff_seconds)
    watched.work("held")
    assert watched.lives_for(stall_seconds)


async def test_a_worker_knows_its_settings() -> None:
    """Retries; a backoff longer than Retry-After's limit; a long session and its rebalances."""
    settings = load_settings(
        consumer_retry_max_attempts=5,
        consumer_retry_initial_interval_ms=180_000,
        consumer_retry_multiplier=3,
        consumer_retry_max_interval_ms=600_000,
        external_logger_timeout_seconds=20,
        kafka_session_timeout_ms=300_000,
    )

    with runtime(settings) as made:
        assert made.dispatcher._policy == RetryPolicy(5, 180.0, 3.0, 600.0)
        assert made.health.stall_seconds == 600 + 20 + 30
        assert made.health.intake_stall_seconds == 600 + 2 * 310


@pytest.mark.parametrize("reason", ["breaker", "paused", "excused"])
@WORK
def test_what_a_restart_would_not_speed_up_is_not_a_standstill(reason: str, work: str) -> None:
    """The target is down or paused, or Kafka, the table or a function is awaited."""
    watched = Watched()
    watched.work(work)
    watched.excuse(reason, given=True)
    watched.pass_time(1_000_000)
    assert watched.live
    watched.excuse(reason, given=False)
    assert watched.lives_for(STALL)


@pytest.mark.parametrize(
    ("work", "kafka_answers"), [("held", True), ("unfinished", True), ("unfinished", False)]
)
def test_the_first_order_after_a_quiet_time_has_as_long_as_any_other(
    work: str, kafka_answers: bool
) -> None:
    """The last attempt ended hours ago, or Kafka was away: what waited there must be read first.

    Until then an idle worker lives for ever.
    """
    watched = Watched()
    watched.work(work, records=0 if kafka_answers else 3)
    watched.pass_time(1_000_000, kafka_answers=kafka_answers)
    assert watched.live
    watched.pass_time(2)
    watched.work(work)
    assert watched.live
    watched.pass_time(STALL - 2)
    assert watched.live
    watched.pass_time(3)
    assert not watched.live


async def test_the_end_of_the_intake_is_not_a_standstill() -> None:
    """At a stop attempts in flight may take as long as the grace."""
    with runtime(load_settings()) as made:
        reader = made.app.reader
        assert [reader.standstill(), reader.standstill()] == [None, "no assignment"]
        await made.drain(0)
        assert reader.standstill() is None


async def test_a_worker_knows_what_it_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kafka for dead letters, the table's changelog, and a function that hangs in its thread."""
    refunds = Consumer("refunds", topic="orders", group="refunds", event=bytes)
    refunds.handler(lambda event, delivery: None)
    for consumer in (order_logging, refunds):
        with runtime(load_settings(), consumer) as made:
            assert not made.health._excused()
            with monkeypatch.context() as patch:
                patch.setattr(DeliveriesTable, "recovering", True)
                assert made.health._excused()
            with monkeypatch.context() as patch:
                patch.setattr(made.dispatcher, "dead_lettering", 1)
                assert made.health._excused()
            if isinstance(made._target, FunctionHandler):
                made._target.in_threads = 1
                assert made.health._excused()


def test_unfinished_records_count_only_while_kafka_answers() -> None:
    """Without Kafka, records measured before cannot be read."""
    watched = Watched()
    watched.health.unfinished = 3
    watched.pass_time(STALL + 1, kafka_answers=False)
    assert watched.live
    watched.deliveries.queued = 1
    assert watched.lives_for(STALL, kafka_answers=False)


FLOW = "flow is suspended"


def test_an_intake_that_stands_still_fails_it() -> None:
    """Also without held records: what is not read cannot be held."""
    watched = Watched()
    watched.health.note_intake(FLOW)
    watched.pass_time(INTAKE_STALL_SECONDS)
    watched.health.note_intake(FLOW)
    assert watched.live
    watched.pass_time(1)
    report = watched.health.live()

    assert not report.ok
    assert report.reasons["intake"] == FLOW
    assert report.reasons["intake_idle_seconds"] == INTAKE_STALL_SECONDS + 1
    assert report.reasons["intake_stalled_after_seconds"] == INTAKE_STALL_SECONDS


def test_an_intake_that_moves_in_between_is_alive() -> None:
    """The end of a rebalance, or of an outage of Kafka, restarts the time."""
    watched = Watched()
    for _ in range(5):
        watched.health.note_intake(FLOW)
        watched.pass_time(INTAKE_STALL_SECONDS)
        assert watched.live
        watched.health.note_intake(None)
    watched.pass_time(INTAKE_STALL_SECONDS)

    assert watched.live
    assert "intake" not in watched.health.live().reasons


def test_a_worker_whose_consumer_gets_no_answer_is_not_ready() -> None:
    """The producer's client may find brokers that the consumer's does not."""
    watched = Watched()
    watched.health.assigned_partitions = 3
    for seconds, ready in ((0, True), (29, True), (2, False)):
        watched.pass_time(seconds)
        watched.health.note_intake(None, consumer_answered=False)
        assert watched.health.ready().ok == ready
    assert watched.health.ready().reasons == {
        "assigned_partitions": 3,
        "producer_connected": True,
        "consumer_connected": False,
    }
    assert not watched.health.kafka_answers()
    watched.health.note_intake(None)

    assert watched.health.ready().ok


@pytest.mark.parametrize("partitions", [0, 1, 3])
@pytest.mark.parametrize("seconds_since_kafka", [0.0, 29.0, 31.0])
def test_ready_means_partitions_and_kafka(partitions: int, seconds_since_kafka: float) -> None:
    """A worker is ready when it has partitions and Kafka answered the producer lately."""
    watched = Watched()
    watched.pass_time(100)
    watched.health.assigned_partitions = partitions
    watched.pass_time(seconds_since_kafka, kafka_answers=False)
    report = watched.health.ready()

    connected = seconds_since_kafka < 30
    assert report.ok == (partitions > 0 and connected)
    assert report.reasons == {"assigned_partitions": partitions, "producer_connected": connected}


def test_nothing_is_ready_before_kafka_answers() -> None:
    """At the start a worker is live and not ready."""
    watched = Watched()

    assert watched.live
    assert not watched.health.ready().ok
