"""The flow into the streams: nothing is dropped, and it does start."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from faust.tables.recovery import RebalanceAgain, ServiceStopped
from faust.types import TP
from mode.utils.queues import FlowControlQueue

from order_relay.kafka.consumer.relay_consumer import RelayConsumer
from order_relay.settings import load_settings
from order_relay.worker.consumer_app import FlowControl, ForeignChangelogs
from tests.support.runtimes import app_of_a_consumer, runtime

pytestmark = pytest.mark.virtual_time

SEEK_SECONDS = 40.0


class SlowToSeek:
    """A consumer with one partition, whose brokers hang."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.sought = False
        self.flows = asyncio.Event()

    def assignment(self) -> set[TP]:
        """One partition."""
        return {TP("orders", 0)}

    def resume_partitions(self, partitions: set[TP]) -> None:
        """Nothing was paused."""

    async def perform_seek(self) -> None:
        """Wait for the brokers."""
        await asyncio.sleep(self.seconds)
        self.sought = True

    def resume_flow(self) -> None:
        """Let records flow."""
        self.flows.set()

    async def maybe_start(self) -> None:
        """Begin to fetch."""


@pytest.mark.parametrize("paused", [True, False])
async def test_resuming_drops_what_is_older_than_a_pause(paused: bool) -> None:
    """Faust resumes twice after a rebalance; only the first time is the queue outdated."""
    flow = FlowControl()
    queue: FlowControlQueue[str] = FlowControlQueue(
        flow_control=flow,
        clear_on_resume=True,  # as a stream's
    )
    flow.resume()
    queue.put_nowait("batch")
    if paused:
        flow.suspend()
    flow.resume()
    assert queue.empty() is paused
    assert flow.is_active()


async def test_a_seek_of_any_length_ends_in_flow() -> None:
    """If brokers hang after an assignment, Faust would end silently after its time-out."""
    app = app_of_a_consumer(load_settings())
    consumer = SlowToSeek(100 * SEEK_SECONDS)
    app.consumer = cast(Any, consumer)
    app.consumer_generation_id = 3
    app.__dict__["_fetcher"] = consumer
    recovery = cast(ForeignChangelogs, app.tables).recovery
    recovery.loop = asyncio.get_running_loop()
    recovering: asyncio.Future[Any] = asyncio.ensure_future(
        recovery._restart_recovery.fun(recovery)
    )
    recovery._generation_id = 3
    recovery.signal_recovery_start.set()

    await consumer.flows.wait()
    assert consumer.sought
    assert not recovering.done()
    recovering.cancel()


@pytest.mark.parametrize(("stops", "error"), [(True, ServiceStopped), (False, RebalanceAgain)])
async def test_a_stop_or_a_rebalance_breaks_off_a_seek(stops: bool, error: type[Exception]) -> None:
    """The next assignment has its own seek; a stopping worker does not wait for brokers."""
    recovery = cast(ForeignChangelogs, app_of_a_consumer(load_settings()).tables).recovery
    event = recovery._stopped if stops else recovery.signal_recovery_start
    asyncio.get_running_loop().call_later(1.0, event.set)
    with pytest.raises(error):
        await recovery._wait(asyncio.Event().wait(), timeout=SEEK_SECONDS)


async def test_a_rebalance_does_not_start_the_intake_of_a_worker_that_stops() -> None:
    """Its attempts in flight may outlast the rebalance, after which Faust resumes."""
    with runtime(load_settings()) as made:
        made.app.reader.resume_flow()
        assert made.app.reader.flow_active
        await made.drain(0)
        made.app.reader.resume_flow()
        assert not made.app.reader.flow_active


@pytest.mark.parametrize(
    ("without_room", "left", "longest_seconds"),
    [(set(), {}, 1.0), ({TP("orders", 1)}, {}, 0.02), (set(), {"key": [7]}, 0.1)],
    ids=["all flows", "a partition has no room", "a key's records are left in Kafka"],
)
async def test_a_fetch_is_short_while_something_may_change(
    without_room: set[TP], left: dict[str, list[int]], longest_seconds: float
) -> None:
    """No partition is read again while a fetch waits for new records."""
    waits: list[float] = []

    async def getmany(active_partitions: set[TP], timeout: float) -> dict[TP, list[Any]]:
        waits.append(timeout)
        return {}

    consumer = SimpleNamespace(
        flow_active=True,
        _get_active_partitions=lambda: {TP("orders", 0)},
        _buffered_partitions=without_room,
        _left=SimpleNamespace(lanes=left),
        _getmany=getmany,
    )
    await RelayConsumer._wait_next_records(cast(RelayConsumer, consumer), timeout=1.0)
    assert waits == [longest_seconds]
