"""The course of the demonstration: open the shop, wait for the end, close the ledger."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import Enum, auto
from pathlib import Path

from rich.console import Console

from demo.embedded_cluster import LIMITS
from demo.environment import Stage, put_up
from demo.interruption import Interruption
from demo.ledger_report import Closing, consumer_report, report
from demo.options import Options
from demo.snapshot import Phase
from demo.view import Screen, say, screen_for

FRAME_SECONDS = 0.5
_LOOK_SECONDS = 0.1
# The shop opens even if the worker is not ready by then: the orders wait in Kafka.
_READY_SECONDS = 30.0
# After Ctrl-C: for what has been paid to be delivered.
_LAST_ORDERS_SECONDS = 5.0
INTERRUPTED_STATUS = 130


class End(Enum):
    """Why the demonstration ends."""

    ACCOUNTED = auto()
    INTERRUPTED = auto()
    STALLED = auto()
    WORKER_ENDED = auto()


async def play(
    options: Options, console: Console, folder: Path, surroundings: Mapping[str, str]
) -> int:
    """Run the whole demonstration.

    Returns:
        The exit status: 0 only if the ledger closes or the user stopped an endless run.

    Raises:
        CannotRun: It cannot start.
    """
    interruption = Interruption()
    interruption.listen()
    async with put_up(options, folder, surroundings) as stage:
        say(console, LIMITS)
        say(console, f"The worker's log: {stage.worker.log_path}")
        with screen_for(console) as screen:
            showing = asyncio.create_task(_show(stage, screen))
            try:
                end = await _until_the_end(stage, interruption, showing)
                if end is End.WORKER_ENDED:
                    stage.log.read_on()
                else:
                    hurry = interruption.second if end is End.INTERRUPTED else interruption.first
                    in_time = await _stop(stage, hurry)
            finally:
                showing.cancel()
                await asyncio.wait([showing])
        if end is End.WORKER_ENDED:
            return _tell_of_worker(stage, console)
        if not in_time:
            say(console, "The worker was killed before it had finished what it had begun.")
        return _close_ledger(stage, console, end)


async def _show(stage: Stage, screen: Screen) -> None:
    while True:
        screen.show(stage.snapshot())
        await asyncio.sleep(FRAME_SECONDS)


async def _until_the_end(
    stage: Stage, interruption: Interruption, showing: asyncio.Task[None]
) -> End:
    """Let it run until one of the reasons to end it is there."""
    ends: dict[asyncio.Task[None] | asyncio.Task[int] | asyncio.Task[bool], End] = {
        asyncio.create_task(stage.worker.wait()): End.WORKER_ENDED,
        asyncio.create_task(interruption.first.wait()): End.INTERRUPTED,
        asyncio.create_task(_sell(stage)): End.ACCOUNTED,
        asyncio.create_task(_stall(stage)): End.STALLED,
    }
    try:
        done, _ = await asyncio.wait({*ends, showing}, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            await task  # a failure of our own must not go unseen
        return min((ends[task] for task in done if task in ends), key=lambda end: end.value)
    finally:
        if interruption.first.is_set():
            await _last_orders(stage, interruption)
        for task in ends:
            task.cancel()
        await asyncio.wait(ends)


async def _sell(stage: Stage) -> None:
    """Open the shop when the worker is ready; return when every order is accounted for."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_READY_SECONDS):
            await _until(lambda: stage.probe.ready)
    stage.opened_at = time.monotonic()
    stage.phase = Phase.RUNNING
    await stage.shop.run(stage.options.orders)
    if stage.phase is Phase.RUNNING:
        stage.phase = Phase.FINISHING
    await _until(stage.is_settled)


async def _last_orders(stage: Stage, interruption: Interruption) -> None:
    """Close the shop and give the orders on the way a moment, but no more than that."""
    stage.shop.close()
    stage.phase = Phase.CLOSING
    await stage.kafka.end()

    def nothing_to_wait_for() -> bool:
        ended = interruption.second.is_set() or stage.worker.exit_code is not None
        return ended or stage.is_settled()

    with suppress(TimeoutError):
        async with asyncio.timeout(_LAST_ORDERS_SECONDS):
            await _until(nothing_to_wait_for)


async def _until(condition: Callable[[], bool]) -> None:
    # What is waited for comes from threads and other processes; there is no event to await.
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(_LOOK_SECONDS)


async def _stall(stage: Stage) -> None:
    """Return when nothing has moved for too long; never, when there is no end to reach."""
    moved_at, last = time.monotonic(), (0, 0, 0)
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        balance = stage.books.ledger.balance()
        others = sum(one.balance().finished for one in stage.consumers)
        now = (balance.paid, balance.finished, others)
        if now != last or stage.opened_at is None:
            moved_at, last = time.monotonic(), now
        patience = stage.options.give_up_after_seconds
        if stage.options.orders is not None and time.monotonic() - moved_at > patience:
            return


async def _stop(stage: Stage, hurry: asyncio.Event) -> bool:
    """Let shop and worker finish what they have begun, and read what they have left.

    Args:
        stage: Whose worker it is.
        hurry: Set when the user does not want to wait for that.

    Returns:
        ``False`` when the worker had to be killed.
    """
    stage.phase = Phase.STOPPING
    await stage.kafka.end()
    settling = asyncio.create_task(stage.database.settle())
    stopping = asyncio.create_task(stage.worker.stop())
    hurrying = asyncio.create_task(hurry.wait())
    await asyncio.wait({stopping, hurrying}, return_when=asyncio.FIRST_COMPLETED)
    hurrying.cancel()
    in_time = stopping.done()
    if not in_time:
        await stage.worker.kill()
    in_time = await stopping and in_time
    await settling
    await asyncio.gather(*(reader.finish() for reader in stage.readers))
    await stage.saved.finish()
    return in_time


def _close_ledger(stage: Stage, console: Console, end: End) -> int:
    ledger = stage.books.ledger
    balance = ledger.balance()
    interrupted = end is End.INTERRUPTED
    if end is End.STALLED:
        patience = stage.options.give_up_after_seconds
        why = f" The database's last refusal: {stage.books.refusal}." if stage.books.refusal else ""
        say(console, f"Given up: nothing has moved for {patience:g} s.{why}")
    closing = Closing(
        goal=stage.options.orders,
        balance=balance,
        seconds=stage.open_seconds,
        times=stage.books.times.percentiles(),
        logger=stage.logger_figures(),
        kafka_outages=stage.kafka.begun,
        missing=ledger.missing(),
        wrong=ledger.wrong(),
    )
    for line in report(closing, interrupted=interrupted):
        say(console, line)
    others = [one.balance() for one in stage.consumers]
    for other in others:
        for line in consumer_report(other, interrupted=interrupted):
            say(console, line)
    if closing.closes and all(other.closes for other in others):
        return 0
    if not interrupted or balance.goes_wrong or any(other.goes_wrong for other in others):
        return 1
    return 0 if stage.options.orders is None else INTERRUPTED_STATUS


def _tell_of_worker(stage: Stage, console: Console) -> int:
    say(
        console,
        f"The worker ended unexpectedly with status {stage.worker.exit_code}. "
        f"The end of its log, {stage.worker.log_path}:",
    )
    for line in stage.log.tail:
        say(console, f"  {line}")
    return 1
