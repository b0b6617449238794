"""What flows into the streams is not dropped when Faust lets it flow once more."""

from mode.utils.queues import FlowControlQueue

from app.faust_overrides import FlowControl


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
