"""The course of the demo: start all parties, open the shop, wait for the end, close the ledger."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum, auto
from pathlib import Path
from typing import Any, NoReturn

from aiokafka.partitioner import murmur2
from rich.console import Console

from demo.collector import READY, Collector, Phase
from demo.command_line import HOST, ORDER_LOGGING, Options, check_port, on_stop_signal
from demo.kafka import LIMITS, PARTITIONS, SAFE_BACKLOG, EmbeddedCluster
from demo.logger import LoggerScript, SampleLogger, first_outage_after
from demo.settings import demo_settings, worker_environment, write_commands
from demo.shop import BROKEN_EVERY, OrderGenerator, ShopDatabase, payments
from demo.view import closes, consumer_report, print_lines, report, view_on
from demo.worker import WorkerLog, WorkerProcess, check_consumers
from order_relay.settings import Settings

FRAME_SECONDS = 0.5
INTERRUPTED_STATUS = 130
# Long enough for publishes to be given up and saved.
OUTAGE_SECONDS = 5.0
_LOOK_SECONDS = 0.1
# On top of the worker's own deadline: leaving the group, closing connections.
_STOP_MARGIN_SECONDS = 20.0
# Consumers of the examples that call a service, and the variable with its URL: another sample
# logger, at a free port.
_SERVICES = {"notifications": "NOTIFICATIONS_SERVICE_URL"}


class End(Enum):
    """Why the demo ends."""

    ACCOUNTED = auto()
    INTERRUPTED = auto()
    STALLED = auto()
    WORKER_ENDED = auto()


@dataclass(frozen=True)
class Parties:
    """All that runs, and what belongs to it.

    Attributes:
        publishing: What publishes the shop's events, until it is closed.
        hints: Commands for another terminal, and the console's address.
    """

    settings: Settings
    cluster: EmbeddedCluster
    collector: Collector
    database: ShopDatabase
    publishing: AsyncExitStack
    worker: WorkerProcess
    hints: Sequence[str]


async def run_scenario(
    options: Options, console: Console, folder: Path, surroundings: Mapping[str, str]
) -> int:
    """Run the whole demo; whatever happens, nothing of it is left running.

    Args:
        options: What the user asked for.
        console: Where it is shown.
        folder: An empty one, where the worker runs.
        surroundings: The environment of this process.

    Returns:
        The exit status: 0 only if the ledger closes or the user stopped an endless run.

    Raises:
        RelayError: A port is in use, a consumer is wrong, or the embedded cluster does not start.
    """
    async with AsyncExitStack() as stack:
        parties = await _start(stack, options, folder, surroundings)
        log = WorkerLog(parties.worker.log_path)
        print_lines(console, LIMITS, f"The worker's log: {parties.worker.log_path}")
        print_lines(console, "In another terminal, while this runs:", *parties.hints)
        with view_on(console) as show:
            ending = await _run(parties, _show(parties.collector, log, show))
        exit_code = parties.worker.exit_code
        if ending is End.WORKER_ENDED:
            log.read_on()
            print_lines(
                console,
                f"The worker ended unexpectedly with status {exit_code}. "
                f"The end of its log, {parties.worker.log_path}:",
                *(f"  {line}" for line in log.tail),
            )
            return 1
        if exit_code == -signal.SIGKILL:
            print_lines(console, "The worker was killed before it had finished what it had begun.")
        if ending is End.STALLED:
            seconds = f"{options.give_up_after:g} s"
            print_lines(console, f"Given up: nothing has moved for {seconds}.")
        hint = "While it runs, these work in another terminal; each run prints its own:"
        print_lines(console, hint, *parties.hints)
        stopped = ending is End.INTERRUPTED
        print_lines(console, *report(parties.collector, interrupted=stopped))
        for one in parties.collector.consumers:
            print_lines(console, *consumer_report(one, interrupted=stopped))
        return _status(parties.collector, interrupted=stopped)


async def _start(
    stack: AsyncExitStack, options: Options, folder: Path, surroundings: Mapping[str, str]
) -> Parties:
    first_outage = first_outage_after(options.orders)
    collector = Collector(options, LoggerScript(options.seed, first_outage))
    check_port(options.web_port, "the worker's web server", "WEB_PORT")
    if len(options.consumers) > 1 or options.consumer_folders:
        unstarted = demo_settings(options, folder, f"{HOST}:1")
        await check_consumers(worker_environment(unstarted, surroundings), folder)
    logger = SampleLogger(collector.logger, collector.logged)
    stack.push_async_callback(logger.stop)
    await logger.start(options.logger_port)
    cluster = EmbeddedCluster()
    stack.callback(cluster.stop)
    settings = demo_settings(options, folder, cluster.servers)
    environment = worker_environment(settings, surroundings)
    for topic in (settings.order_paid_topic, settings.dlq_topic):
        cluster.make_topic(topic, PARTITIONS)
    for name in _SERVICES.keys() & {*options.consumers}:
        service = SampleLogger(LoggerScript(options.seed + 1, first_outage))
        stack.push_async_callback(service.stop)
        environment[_SERVICES[name]] = f"http://{HOST}:{await service.start(0)}/logs"

    database = ShopDatabase(settings)
    stack.push_async_callback(database.close)
    publishing = await stack.enter_async_context(AsyncExitStack())
    await publishing.enter_async_context(database.publishing())
    worker = WorkerProcess(folder / "worker.log", environment)
    stack.push_async_callback(worker.stop)
    await worker.start()

    url = str(settings.own_url)
    commands = write_commands(
        folder,
        environment,
        surroundings,
        consumer=ORDER_LOGGING if collector.consumers else "",
        dead_letter=_first_dead_letter(options.seed),
    )
    collector.places = {
        "Worker's log": str(worker.log_path),
        "Its console": f"{url}/",
        "Its commands": commands[0],
    }
    hints = [*(f"  {command}" for command in commands), f"The console: {url}/"]
    return Parties(settings, cluster, collector, database, publishing, worker, hints)


async def _run(parties: Parties, showing: Coroutine[Any, Any, NoReturn]) -> End:
    """Let the shop sell, and stop all parties when one of the ends has come."""
    settings, collector, worker = parties.settings, parties.collector, parties.worker
    interrupted = asyncio.Event()

    def interrupt() -> None:
        if collector.phase is Phase.STOPPING:
            worker.kill()
        interrupted.set()

    on_stop_signal(interrupt)
    # A failure of one of these is a mistake of the demo, and ends it.
    async with asyncio.TaskGroup() as tasks:
        selling = tasks.create_task(_sell(collector, parties.database))
        outages = tasks.create_task(
            run_outages(parties.cluster, collector, outage_plan(collector.options.orders))
        )
        url = str(settings.own_url)
        looking = [tasks.create_task(one) for one in (collector.ask_worker(url), showing)]
        watching = [
            tasks.create_task(collector.watch_table(parties.database)),
            tasks.create_task(collector.read_dead_letters(settings)),
        ]
        ending = await _until_the_end(collector, worker, selling, interrupted)
        collector.phase = Phase.STOPPING
        selling.cancel()
        outages.cancel()
        await worker.stop(settings.shutdown_grace_seconds + _STOP_MARGIN_SECONDS)
        await parties.publishing.aclose()
        collector.finish()
        await asyncio.wait(watching)
        for task in looking:
            task.cancel()
    return ending


async def _show(
    collector: Collector, log: WorkerLog, show: Callable[[Collector], None]
) -> NoReturn:
    while True:
        log.read_on()
        collector.warnings = log.warnings
        collector.measure_rates()
        show(collector)
        await asyncio.sleep(FRAME_SECONDS)


async def _sell(collector: Collector, database: ShopDatabase) -> None:
    """Open the shop when the worker is ready; return when every order is paid."""
    # What is waited for comes from another process; there is no event to await.
    while collector.answer != READY:  # noqa: ASYNC110
        await asyncio.sleep(_LOOK_SECONDS)
    collector.opened_at = time.monotonic()
    collector.phase = Phase.RUNNING

    def may_pay() -> bool:
        waiting = (collector.ledger.balance().open, *(one.open for one in collector.consumers))
        return max(waiting) < SAFE_BACKLOG

    options = collector.options
    async for order in payments(
        OrderGenerator(options.seed),
        database.pay,
        rate=options.rate,
        number=options.orders,
        may_pay=may_pay,
    ):
        collector.paid(order)
    collector.phase = Phase.FINISHING


async def _until_the_end(
    collector: Collector,
    worker: WorkerProcess,
    selling: asyncio.Task[None],
    interrupted: asyncio.Event,
) -> End:
    """Wait for the first of the reasons to end it."""
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        if worker.exit_code is not None:
            return End.WORKER_ENDED
        if interrupted.is_set():
            return End.INTERRUPTED
        if selling.done() and collector.is_settled():
            return End.ACCOUNTED
        if collector.is_stalled():
            return End.STALLED


def _status(collector: Collector, *, interrupted: bool) -> int:
    if closes(collector) and not any(one.open for one in collector.consumers):
        return 0
    if not interrupted or collector.ledger.balance().wrong:
        return 1
    return 0 if collector.options.orders is None else INTERRUPTED_STATUS


def _first_dead_letter(seed: int) -> str:
    """Return partition and offset of a dead letter there will be: the shop's broken message."""
    orders = OrderGenerator(seed)
    made = (orders.next_order(datetime.now(UTC)) for _ in range(BROKEN_EVERY))
    key = next(order.key for order in made if order.broken)
    # A dead letter keeps the partition of its record; this is the partition's first one.
    return f"{(murmur2(key) & 0x7FFFFFFF) % PARTITIONS}:0"


def outage_plan(orders: int | None) -> tuple[int, int]:
    """Return the number of payments before the first outage, and between one and the next.

    Even a short run meets one outage, and a run with a number of orders meets no second one. It
    begins with a third of the orders still to be paid, up to a number.
    """
    return (400, 1600) if orders is None else (max(orders * 2 // 3, orders - 500), orders)


async def run_outages(
    cluster: EmbeddedCluster,
    collector: Collector,
    plan: tuple[int, int],
    seconds: float = OUTAGE_SECONDS,
) -> NoReturn:
    """Take the brokers down and up as planned until this is cancelled; then they are up."""
    due, every = plan
    while True:
        # The ledger counts; there is no event to await.
        while collector.ledger.balance().paid <= due:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_SECONDS)
        due += every
        collector.kafka_is_down = True
        collector.kafka_outages += 1
        cluster.down()
        try:
            await asyncio.sleep(seconds)
        finally:
            cluster.up()
            collector.kafka_is_down = False
