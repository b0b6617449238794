"""What flows into the streams: nothing is dropped on the way, and it does begin to flow."""

import asyncio
from typing import Any, cast

import pytest
from faust.tables.recovery import RebalanceAgain, ServiceStopped
from faust.types import TP
from mode.utils.queues import FlowControlQueue

from order_relay.settings import load_settings
from order_relay.worker.consumer_app import FlowControl, ForeignChangelogs, PatientRecovery
from tests.support.runtimes import app_of_a_consumer
from tests.support.virtual_time import virtual_time

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


def recovery_of_an_app() -> PatientRecovery:
    """What the worker's application lets flow begin with."""
    return cast(ForeignChangelogs, app_of_a_consumer(load_settings()).tables).recovery


async def test_resuming_what_flows_drops_nothing() -> None:
    """Faust resumes twice after a rebalance; a batch handed out in between stays."""
    flow = FlowControl()
    queue: FlowControlQueue[str] = FlowControlQueue(
        flow_control=flow,
        clear_on_resume=True,  # as a stream's
    )
    flow.resume()
    queue.put_nowait("batch")

    flow.resume()

    assert queue.qsize() == 1
    assert flow.is_active()


async def test_resuming_after_a_pause_drops_what_is_old() -> None:
    """What a rebalance left in a queue is of partitions that are read anew."""
    flow = FlowControl()
    queue: FlowControlQueue[str] = FlowControlQueue(
        flow_control=flow,
        clear_on_resume=True,  # as a stream's
    )
    flow.resume()
    queue.put_nowait("old batch")
    flow.suspend()
    assert not flow.is_active()

    flow.resume()

    assert queue.empty()


@virtual_time
async def test_a_seek_of_any_length_ends_in_flow() -> None:
    """Brokers that hang after an assignment: Faust would end without a word after its time-out."""
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


@virtual_time
async def test_a_rebalance_breaks_off_a_seek() -> None:
    """The next assignment has a seek of its own."""
    recovery = recovery_of_an_app()
    asyncio.get_running_loop().call_later(1.0, recovery.signal_recovery_start.set)

    with pytest.raises(RebalanceAgain):
        await recovery._wait(asyncio.Event().wait(), timeout=SEEK_SECONDS)


@virtual_time
async def test_a_stop_breaks_off_a_seek() -> None:
    """A worker that stops does not wait for brokers that hang."""
    recovery = recovery_of_an_app()
    asyncio.get_running_loop().call_later(1.0, recovery._stopped.set)

    with pytest.raises(ServiceStopped):
        await recovery._wait(asyncio.Event().wait(), timeout=SEEK_SECONDS)
