"""The course of the demo: start all parties, open the shop, wait for the end, close the ledger."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Literal, NoReturn

from rich.console import Console

from demo.collector import READY, Collector, Phase
from demo.command_line import HOST, Options, check_port, on_stop_signal
from demo.kafka import LIMITS, PARTITIONS, SAFE_BACKLOG, EmbeddedCluster
from demo.logger import SampleLogger, first_outage_after
from demo.shop import ShopDatabase, payments, sample_orders
from demo.view import closes, consumer_report, print_lines, report, show
from demo.worker import (
    demo_settings,
    kill_worker,
    start_worker,
    stop_worker,
    worker_environment,
    write_commands,
)

# Long enough for publishes to be given up and saved.
OUTAGE_SECONDS = 5.0
_LOOK_SECONDS = 0.1
# On top of the worker's own deadline: leaving the group, closing connections.
_STOP_MARGIN_SECONDS = 20.0
# Why the demo ends.
End = Literal["accounted", "interrupted", "stalled", "worker ended"]


class Scenario:
    """All that runs, from its start to the closing of the ledgers."""

    def __init__(self, options: Options, console: Console, folder: Path) -> None:
        """Prepare; nothing is started. The worker will run in ``folder``, an empty one."""
        self._options = options
        self._console = console
        self._folder = folder
        self._log_path = folder / "worker.log"
        self._logger = SampleLogger(options.seed, first_outage_after(options.orders))
        self._collector = Collector(options, self._logger)

    async def run(self) -> int:
        """Run the whole demo; whatever happens, nothing of it is left running.

        Returns:
            The exit status: 0 only if each ledger closes or the user stopped an endless run.

        Raises:
            RelayError: A port is in use, or the embedded cluster does not start.
        """
        collector, console = self._collector, self._console
        async with AsyncExitStack() as stack:
            await self._start(stack)
            ending = await self._until_stopped()
        status = self._worker.returncode
        if ending == "worker ended":
            log = self._log_path.read_text("utf-8", "replace")
            print_lines(
                console,
                f"The worker ended unexpectedly with status {status}. "
                f"The end of its log, {self._log_path}:",
                *(f"  {line}" for line in log.splitlines()[-15:]),
            )
            return 1
        if status == -signal.SIGKILL:
            print_lines(console, "The worker was killed before it had finished what it had begun.")
        if ending == "stalled":
            seconds = self._options.give_up_after
            print_lines(console, f"Given up: nothing has moved for {seconds:g} s.")
        interrupted = ending == "interrupted"
        print_lines(console, *report(collector, interrupted=interrupted))
        for one in collector.consumers:
            print_lines(console, *consumer_report(one, interrupted=interrupted))
        if closes(collector) and not collector.open:
            return 0
        if not interrupted or collector.ledger.balance().wrong:
            return 1
        return 0 if self._options.orders is None else 130

    async def _start(self, stack: AsyncExitStack) -> None:
        options, collector, folder = self._options, self._collector, self._folder
        await stack.enter_async_context(self._logger.listening(options.logger_port))
        check_port(options.web_port, "the worker's web server", "WEB_PORT")
        self._cluster = EmbeddedCluster()
        stack.callback(self._cluster.stop)
        self._settings = settings = demo_settings(options, folder, self._cluster.servers)
        environment = worker_environment(settings, os.environ)
        for topic in (settings.order_paid_topic, settings.dlq_topic):
            self._cluster.make_topic(topic, PARTITIONS)
        if "notifications" in options.consumers:  # of the examples; it calls a service
            service = SampleLogger(options.seed + 1, first_outage_after(options.orders))
            port = await stack.enter_async_context(service.listening(0))
            environment["NOTIFICATIONS_SERVICE_URL"] = f"http://{HOST}:{port}/logs"

        self._database = ShopDatabase(settings)
        stack.push_async_callback(self._database.close)
        self._publishing = await stack.enter_async_context(AsyncExitStack())
        await self._publishing.enter_async_context(self._database.publishing())
        self._worker = await start_worker(self._log_path, environment)
        stack.push_async_callback(stop_worker, self._worker)

        commands = write_commands(folder, environment)
        collector.places = {
            "Worker's log": str(self._log_path),
            "Its console": f"{settings.own_url}/",
            "Its commands": commands[0],
        }
        print_lines(
            self._console,
            LIMITS,
            f"The worker's log: {self._log_path}",
            "In another terminal, while this runs:",
            *(f"  {command}" for command in commands),
            f"The console: {settings.own_url}/",
        )

    async def _until_stopped(self) -> End:
        """Let the shop sell, and stop all parties when one of the ends has come."""
        collector, worker = self._collector, self._worker
        interrupted = asyncio.Event()

        def interrupt() -> None:
            if collector.phase is Phase.STOPPING:
                kill_worker(worker)
            interrupted.set()

        on_stop_signal(interrupt)
        # A failure of one of these is a mistake of the demo, and ends it.
        async with asyncio.TaskGroup() as tasks:
            selling = tasks.create_task(self._sell())
            plan = outage_plan(self._options.orders)
            outages = tasks.create_task(run_outages(self._cluster, collector, plan))
            looking = [
                tasks.create_task(collector.ask_worker(str(self._settings.own_url))),
                tasks.create_task(show(collector, self._console)),
            ]
            watching = [
                tasks.create_task(collector.watch_table(self._database)),
                tasks.create_task(collector.read_dead_letters(self._settings)),
            ]
            ending = await self._until_the_end(selling, interrupted)
            collector.phase = Phase.STOPPING
            selling.cancel()
            outages.cancel()
            await stop_worker(worker, self._settings.shutdown_grace_seconds + _STOP_MARGIN_SECONDS)
            await self._publishing.aclose()
            collector.finish()
            await asyncio.wait(watching)
            for task in looking:
                task.cancel()
        return ending

    async def _sell(self) -> None:
        """Open the shop when the worker is ready; return when every order is paid."""
        collector, options = self._collector, self._options
        # What is waited for comes from another process; there is no event to await.
        while collector.answer != READY:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_SECONDS)
        collector.open_shop()
        async for order in payments(
            sample_orders(options.seed),
            self._database.pay,
            rate=options.rate,
            number=options.orders,
            may_pay=lambda: collector.open < SAFE_BACKLOG,
        ):
            collector.paid(order)
        collector.phase = Phase.FINISHING

    async def _until_the_end(self, selling: asyncio.Task[None], interrupted: asyncio.Event) -> End:
        """Wait for the first of the reasons to end it."""
        collector = self._collector
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            if self._worker.returncode is not None:
                return "worker ended"
            if interrupted.is_set():
                return "interrupted"
            if selling.done() and not (collector.open or collector.pending):
                return "accounted"
            if collector.is_stalled():
                return "stalled"


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
