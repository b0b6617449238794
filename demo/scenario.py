"""The course of the demo: open the shop, wait for the end, close the ledger."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import Enum, auto
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from demo.collector import Collector, Phase, WorkerState
from demo.command_line import Interruption, Options
from demo.environment import Environment, end, open_environment
from demo.kafka import LIMITS
from demo.view import closes, consumer_report, print_lines, report, view_on
from demo.worker import WorkerLog

FRAME_SECONDS = 0.5
INTERRUPTED_STATUS = 130
_LOOK_SECONDS = 0.1
# The shop opens even if the worker is not ready by then: the orders wait in Kafka.
_READY_SECONDS = 30.0
# After Ctrl-C: for what has been paid to be delivered.
_LAST_ORDERS_SECONDS = 5.0


class End(Enum):
    """Why the demo ends."""

    ACCOUNTED = auto()
    INTERRUPTED = auto()
    STALLED = auto()
    WORKER_ENDED = auto()


async def run_scenario(
    options: Options, console: Console, folder: Path, surroundings: Mapping[str, str]
) -> int:
    """Run the whole demo.

    Returns:
        The exit status: 0 only if the ledger closes or the user stopped an endless run.

    Raises:
        CannotRun: It cannot start.
    """
    interruption = Interruption()
    async with open_environment(options, folder, surroundings) as environment:
        collector, worker = environment.collector, environment.worker
        log = WorkerLog(worker.log_path)
        console_url = f"The console: {collector.places['Its console']}"
        commands = [*(f"  {command}" for command in environment.commands), console_url]
        print_lines(console, LIMITS, f"The worker's log: {worker.log_path}")
        print_lines(console, "In another terminal, while this runs:", *commands)
        with view_on(console) as show:
            showing = asyncio.create_task(_show(collector, log, show))
            try:
                ending = await _until_the_end(environment, interruption, showing)
                interrupted = ending is End.INTERRUPTED
                if ending is not End.WORKER_ENDED:
                    hurry = interruption.second if interrupted else interruption.first
                    in_time = await _stop(environment, hurry)
            finally:
                await end(showing)
        if ending is End.WORKER_ENDED:
            log.read_on()
            print_lines(
                console,
                f"The worker ended unexpectedly with status {worker.exit_code}. "
                f"The end of its log, {worker.log_path}:",
                *(f"  {line}" for line in log.tail),
            )
            return 1
        if not in_time:
            print_lines(console, "The worker was killed before it had finished what it had begun.")
        if ending is End.STALLED:
            why = f" The database's last refusal: {collector.refusal}." if collector.refusal else ""
            stalled = f"Given up: nothing has moved for {options.give_up_after:g} s.{why}"
            print_lines(console, stalled)
        hint = "While it runs, these work in another terminal; each run prints its own:"
        print_lines(console, hint, *commands)
        print_lines(console, *report(collector, interrupted=interrupted))
        for one in collector.consumers:
            print_lines(console, *consumer_report(one, interrupted=interrupted))
        return _status(collector, interrupted=interrupted)


async def _show(
    collector: Collector, log: WorkerLog, show: Callable[[Collector], None]
) -> NoReturn:
    while True:
        log.read_on()
        collector.warnings = log.warnings
        collector.measure_rates()
        show(collector)
        await asyncio.sleep(FRAME_SECONDS)


async def _until_the_end(
    environment: Environment, interruption: Interruption, showing: asyncio.Task[NoReturn]
) -> End:
    """Let it run until there is one of the reasons to end it."""
    collector, options = environment.collector, environment.collector.options
    selling = asyncio.create_task(_sell(environment))
    moved_at, last = time.monotonic(), (0, 0, 0)
    try:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            for task in (selling, showing):
                if task.done():
                    task.result()  # a failure of our own must not go unseen
            balance = collector.ledger.balance()
            others = sum(one.finished for one in collector.consumers)
            progress = (balance.paid, balance.finished, others)
            if progress != last or collector.phase is Phase.STARTING:
                moved_at, last = time.monotonic(), progress
            if environment.worker.exit_code is not None:
                return End.WORKER_ENDED
            if interruption.first.is_set():
                await _last_orders(environment, interruption)
                return End.INTERRUPTED
            if selling.done() and collector.is_settled():
                return End.ACCOUNTED
            if options.orders and time.monotonic() - moved_at > options.give_up_after:
                return End.STALLED
    finally:
        await end(selling)


async def _sell(environment: Environment) -> None:
    """Open the shop when the worker is ready; return when every order is paid."""
    collector = environment.collector
    with suppress(TimeoutError):
        async with asyncio.timeout(_READY_SECONDS):
            # What is waited for comes from another process; there is no event to await.
            while collector.worker is not WorkerState.READY:  # noqa: ASYNC110
                await asyncio.sleep(_LOOK_SECONDS)
    collector.opened_at = time.monotonic()
    collector.phase = Phase.RUNNING
    await environment.shop.run(collector.options.orders)
    if collector.phase is Phase.RUNNING:
        collector.phase = Phase.FINISHING


async def _last_orders(environment: Environment, interruption: Interruption) -> None:
    """Close the shop and give the orders on the way a moment, but no more than that."""
    collector = environment.collector
    environment.shop.close()
    collector.phase = Phase.CLOSING
    await end(environment.outages)
    deadline = time.monotonic() + _LAST_ORDERS_SECONDS
    while time.monotonic() < deadline and not collector.is_settled():
        if interruption.second.is_set() or environment.worker.exit_code is not None:
            return
        await asyncio.sleep(_LOOK_SECONDS)


async def _stop(environment: Environment, hurry: asyncio.Event) -> bool:
    """Let shop and worker finish what they have begun, and read what they have left.

    When ``hurry`` is set, the worker is killed. Returns ``False`` when it had to be killed.
    """
    collector, worker = environment.collector, environment.worker
    collector.phase, collector.worker = Phase.STOPPING, WorkerState.DRAINING
    await end(environment.outages)
    settling = asyncio.create_task(environment.database.settle())
    stopping = asyncio.create_task(worker.stop())
    hurrying = asyncio.create_task(hurry.wait())
    await asyncio.wait({stopping, hurrying}, return_when=asyncio.FIRST_COMPLETED)
    hurrying.cancel()
    in_time = stopping.done()
    await worker.kill()
    in_time = await stopping and in_time
    collector.worker = WorkerState.ENDED
    await settling
    await environment.finish()
    return in_time


def _status(collector: Collector, *, interrupted: bool) -> int:
    if closes(collector) and all(one.closes for one in collector.consumers):
        return 0
    others_go_wrong = any(one.goes_wrong for one in collector.consumers)
    if not interrupted or collector.ledger.balance().goes_wrong or others_go_wrong:
        return 1
    return 0 if collector.options.orders is None else INTERRUPTED_STATUS
