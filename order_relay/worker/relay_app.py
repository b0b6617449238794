"""The worker's Faust application: what consumers share, and the order of start and shutdown."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import faust
import mode.loop
from faust.app.base import BootStrategy
from faust.sensors.prometheus import FaustMetrics

from order_relay.errors import (
    DatabaseUnavailable,
    InvalidConsumer,
    InvalidDatabaseUrl,
    InvalidSettings,
)
from order_relay.fallback.sql.audit_log import AuditLog
from order_relay.fallback.table import FallbackTable
from order_relay.kafka.group_members import GroupMembers
from order_relay.kafka.producer import KafkaProducer
from order_relay.kafka.topics import Topics
from order_relay.logs import json_format, rate_limit
from order_relay.logs.log_line import CONSOLE_URL, LogLine
from order_relay.logs.standard_streams import escape_unencodable, open_closed_streams
from order_relay.monitoring.health import StandsStill
from order_relay.monitoring.measurements import watch_event_loop
from order_relay.monitoring.metrics import Metrics
from order_relay.settings import Settings as RelaySettings
from order_relay.settings import load_settings
from order_relay.settings.consumers import ConfiguredConsumer, choose, configure, misspelled
from order_relay.settings.settings import load_log_format
from order_relay.tracing.switch import make_tracing
from order_relay.web.access import Access
from order_relay.web.connections import ConnectionLimits
from order_relay.web.console.changes import Changes
from order_relay.web.console.cluster import Cluster
from order_relay.web.console.pages import Console
from order_relay.web.consumer import ServedConsumer
from order_relay.web.server import WebServer
from order_relay.worker import file_descriptors
from order_relay.worker.consumer_app import FaustSettings, faust_options
from order_relay.worker.consumer_runtime import ConsumerRuntime, prepare_folder
from order_relay.worker.consumer_threads import ConsumerThreads
from order_relay.worker.discovery import call_register, find_consumers, import_modules
from order_relay.worker.fallback_service import Fallback
from order_relay.worker.faust_worker import ShutdownWatch, use_worker

logger = logging.getLogger(__name__)

# For commits, leaving the group and closing connections, after deliveries have ended.
SHUTDOWN_TAIL_SECONDS = 15.0
PRODUCER_STOP_SECONDS = 1.0
AUDIT_SECONDS = 5.0
FOLLOW_PAUSES_SECONDS = 15.0
# The first wait before a background function that failed starts again; it doubles.
BACKGROUND_RESTART_SECONDS = 1.0
MAX_BACKGROUND_RESTART_SECONDS = 60.0
# With Python's default of 700 new objects the garbage collector takes a fifth of the CPU time of a
# worker with hundreds of deliveries in flight.
GC_THRESHOLDS = (10_000, 20, 20)
# How long a thread that wants to run may wait for the one that does. Each record passes from
# Kafka's thread to the loop and back. With Python's 5 ms the 99th percentile is 0.7 ms longer.
SWITCH_INTERVAL_SECONDS = 0.0005
# Only the owner may read the files that the worker creates.
OWNER_ONLY = 0o077


class WithoutKafka(BootStrategy):
    """Starts an app without Faust's consumer, producer, sensors and web server."""

    enable_kafka = False
    enable_sensors = False
    enable_web = False


class RelayApp(faust.App):
    """The app that ``faust -A app worker`` runs. Each consumer has its own Faust app inside it.

    Attributes:
        settings: The worker's settings.
        consumers: The consumers that this worker runs.
        declared: All declared consumers; commands work on each of them.
        background: Functions that start with the worker and run beside deliveries. They return, or
            are cancelled at shutdown; one that raises is started again.
        on_consumer: Functions that are called with each consumer's runtime before it starts.
        metrics: All metrics.
        tracing: Makes the worker's spans; ``None``: tracing is off.
    """

    Settings = FaustSettings
    BootStrategy = WithoutKafka

    def __init__(self, settings: RelaySettings) -> None:
        """Make what consumers share. Starts and connects nothing."""
        # Faust makes a URL of the host, in which an IPv6 address has brackets.
        web_host = f"[{settings.web_host}]" if ":" in settings.web_host else settings.web_host
        super().__init__(
            "order-relay",
            **faust_options(settings),
            web_enabled=True,
            web_bind=web_host,
            web_host=web_host,
            web_port=settings.web_port,
        )
        self.settings = settings
        self.consumers: Sequence[ConfiguredConsumer] = ()
        self.declared: Sequence[ConfiguredConsumer] = ()
        self.background: list[Callable[[], Coroutine[Any, Any, None]]] = []
        self.on_consumer: list[Callable[[ConsumerRuntime], None]] = []
        self.metrics = Metrics()
        self.tracing = make_tracing(settings)
        self._topics = Topics(settings)
        self._producer_of_events = KafkaProducer(settings)
        table = FallbackTable(
            settings.database_url.get_secret_value(),
            on_replaced=self.metrics.counters["fallback_files_replaced"].inc,
        )
        self.fallback = Fallback(
            settings, table, self._producer_of_events, self.metrics, tracing=self.tracing
        )
        self._audit = AuditLog(self.fallback.store.engine)
        self._paused: set[str] = set()
        self._shutdown_watch = ShutdownWatch()
        self._background_tasks: list[asyncio.Task[None]] = []
        self._runtimes: list[ConsumerRuntime] = []
        self._starting: list[asyncio.Task[None]] = []
        self._web_server: WebServer | None = None

    def import_consumers(self, *packages: str) -> None:
        """Import every module of these packages and of CONSUMER_FOLDERS, and run their consumers.

        Calls ``register(app)`` of each module that has it.

        Raises:
            SystemExit: A module, a consumer or a setting is wrong; one line tells which.
        """
        with _errors_in_one_line():
            modules = import_modules(packages, self.settings.consumer_folders)
            call_register(modules, self)
            declared = configure(find_consumers(modules), self.settings)
            self.run_consumers(choose(declared, self.settings.consumers), declared)

    def run_consumers(
        self, consumers: Sequence[ConfiguredConsumer], declared: Sequence[ConfiguredConsumer]
    ) -> None:
        """Set the consumers to run, and all that are declared; call it before the start.

        Raises:
            InvalidConsumer: A Faust agent is defined, which would lose records; one line.
        """
        for agent in self.agents.values():
            raise InvalidConsumer(
                f"{agent.fun.__module__.replace('.', '/')}.py: the Faust agent "
                f"{agent.fun.__name__!r} cannot run here, it would lose records: declare a "
                "Consumer instead (docs/how-to/add-a-consumer.md)"
            )
        self.consumers = consumers
        self.declared = declared

    # --- starting and stopping ------------------------------------------------------------------

    async def on_start(self) -> None:
        """Start what is shared, then all consumers in parallel: none waits for another."""
        self.finalize()
        gc.set_threshold(*GC_THRESHOLDS)
        sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
        rate_limit.install(several_consumers=len(self.consumers) > 1)
        if self.conf.web_enabled:
            CONSOLE_URL.set(str(self.settings.own_url).rstrip("/"))
        for name, meant in misspelled(self.declared).items():
            logger.warning(LogLine("Unknown setting", variable=name, perhaps=meant))
        if self.tracing is not None:
            with _errors_in_one_line():
                self.tracing.export.start()
        self._shares = file_descriptors.obtain([one.settings for one in self.consumers])
        self._make_consumers()
        shares = zip(self._runtimes, self._shares.max_in_flight, strict=True)
        threads = ConsumerThreads({runtime.name: share for runtime, share in shares})
        asyncio.get_running_loop().set_default_executor(threads)
        self._background_tasks = [
            asyncio.create_task(watch_event_loop(self.metrics.loop_lag.observe))
        ]
        # Before Kafka is available: health checks get an answer meanwhile, and orders that arrive
        # by HTTP are saved.
        await self._start_web_server()
        await self.fallback.start()
        if not await self._topics.wait_until_ready(self._pause):
            return  # the worker stops
        await self._producer_of_events.start()
        self.fallback.publisher.ping_now()  # until now Kafka counted as unreachable
        if self.should_stop:
            return  # a stop came meanwhile, and would not stop what starts after it
        await self._pause_as_before()
        self._background_tasks.append(asyncio.create_task(self._follow_pauses()))
        self._background_tasks += [
            asyncio.create_task(_run_to_its_end(work)) for work in self.background
        ]
        self._starting = [asyncio.create_task(self._start(one)) for one in self._runtimes]
        await asyncio.sleep(0)  # now each background function has begun
        if not self.fallback.replaying:
            logger.warning(
                "This worker does not replay the fallback table: saved events and dead letters "
                "wait for another worker that does (agents/fallback_replay.py)"
            )

    async def _start_web_server(self) -> None:
        if not self.conf.web_enabled:
            return
        settings, token = self.settings, self.settings.api_token
        access = Access(token.get_secret_value() if token else None, settings.web_names)
        served = {one.name: one.served() for one in self._runtimes}
        self._web_server = WebServer(
            settings.web_host,
            settings.web_port,
            self.metrics.registry,
            served,
            console=self._console(access, served),
            publisher=self.fallback.publisher,
            access=access,
            on_rejected=self.metrics.published,
            connections=ConnectionLimits(connections=self._shares.web_connections),
            on_closed=self.metrics.web_connection_closed,
        )
        try:
            await self._web_server.start()
        except OSError as error:
            raise SystemExit(
                f"cannot serve on WEB_HOST={settings.web_host} WEB_PORT={settings.web_port}: "
                f"{error.strerror or error}"
            ) from None

    def _console(self, access: Access, served: Mapping[str, ServedConsumer]) -> Console:
        groups = {one.name: one.settings.consumer_group_id for one in self.declared}
        of_groups = GroupMembers(self.settings, tuple(groups.values()))

        async def members() -> dict[str, set[str] | None]:
            urls: Mapping[str, Collection[str]] = {}
            # While Kafka does not answer, a page must not wait for it.
            if all(runtime.health.kafka_answers() for runtime in self._runtimes):
                urls = await of_groups.urls()
            found: dict[str, set[str] | None] = {
                name: set(urls[group]) if group in urls else None for name, group in groups.items()
            }
            for runtime in self._runtimes:
                found[runtime.name] = runtime.workers() | (found.get(runtime.name) or set())
            return found

        cluster = Cluster(self.settings.own_url, served, members, access.sign)
        changes = Changes(
            served,
            self.fallback.store,
            self._audit,
            producer=self._producer_of_events,
            access=access,
            cluster=cluster,
            tracing=self.tracing,
        )
        return Console(changes, runbook_url=self.settings.runbook_url)

    def _make_consumers(self) -> None:
        faust_metrics = FaustMetrics.create(self.metrics.registry, "faust")
        self.metrics.add_process()
        for consumer, max_in_flight in zip(self.consumers, self._shares.max_in_flight, strict=True):
            if consumer.settings.deliveries_store == "rocksdb":
                prepare_folder(consumer.settings)
            runtime = ConsumerRuntime(
                consumer,
                producer=self._producer_of_events,
                topics=self._topics,
                fallback=self.fallback,
                metrics=self.metrics,
                faust_metrics=faust_metrics,
                max_in_flight=max_in_flight,
                tracing=self.tracing,
            )
            runtime.app.beacon.reattach(self.beacon)  # its crash crashes the worker
            for register in self.on_consumer:
                register(runtime)
            self._runtimes.append(runtime)

    async def _pause_as_before(self) -> None:
        """Pause the consumers that a person had paused before this worker started."""
        try:
            await self._apply_pauses()
        except (DatabaseUnavailable, TimeoutError) as error:
            problem = str(error) or "no answer in time"
            logger.warning(LogLine("Paused consumers are not known, none is paused", error=problem))

    async def _follow_pauses(self) -> None:
        """Apply what a person changed while other workers did not reach this one."""
        while True:
            await asyncio.sleep(FOLLOW_PAUSES_SECONDS)
            with suppress(DatabaseUnavailable, TimeoutError):
                await self._apply_pauses()

    async def _apply_pauses(self) -> None:
        async with asyncio.timeout(AUDIT_SECONDS):
            paused = await self._audit.paused()
        # Only what has changed: a pause may have been made while the database was away.
        changed, self._paused = paused ^ self._paused, paused
        for runtime in self._runtimes:
            is_paused = runtime.name in paused
            if runtime.name not in changed or runtime.dispatcher.paused == is_paused:
                continue
            runtime.dispatcher.pause(is_paused)
            logger.warning(
                LogLine("Consumer stays paused until it is resumed", consumer=runtime.name)
                if is_paused
                else LogLine("Consumer was resumed", consumer=runtime.name)
            )

    async def _start(self, runtime: ConsumerRuntime) -> None:
        try:
            await runtime.start(self._pause, self._end)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - this consumer would read nothing
            await self.crash(error)

    async def on_started(self) -> None:
        """Report the worker as ready once all consumers are."""
        if self._starting:
            await self.wait(asyncio.wait(self._starting))  # ends early at a stop or a crash
        if self.on_startup_finished and not self.should_stop:
            await self.on_startup_finished()

    async def on_stop(self) -> None:
        """Stop the intake, let deliveries finish, commit, finish publishing, close."""
        grace = self.settings.shutdown_grace_seconds
        self._shutdown_watch.allow(grace + SHUTDOWN_TAIL_SECONDS)
        replay_stopped = asyncio.create_task(self.fallback.stop_replay(grace))
        for starting in self._starting:
            starting.cancel()
        if self._starting:  # a consumer must not start and stop at the same time
            await asyncio.wait(self._starting)
        await asyncio.gather(*(self._stop_runtime(one, grace) for one in self._runtimes))
        await replay_stopped
        for task in self._background_tasks:
            task.cancel()
        # Before the producer stops. Events that arrive by HTTP after this are saved.
        await self.fallback.stop_publishing(grace)
        await super().on_stop()
        # Only changes of the deliveries table can still be in flight, and nothing waits for them.
        await self._producer_of_events.stop(PRODUCER_STOP_SECONDS)

    async def on_shutdown(self) -> None:
        """Stop the web server and close the database; everything else has stopped in time."""
        if self._web_server is not None:
            await self._web_server.stop()
        for runtime in self._runtimes:
            await runtime.close()
        await self.fallback.close()
        if self.tracing is not None:
            await self.tracing.export.stop()
        self._shutdown_watch.cancel()
        await super().on_shutdown()

    async def _stop_runtime(self, runtime: ConsumerRuntime, grace_seconds: float) -> None:
        """Stop a consumer. It waits for no other, so that its partitions have a new owner soon."""
        for step in (partial(self._drain, runtime, grace_seconds), runtime.commit, runtime.stop):
            try:
                await step()
            except Exception:
                logger.exception("Consumer was not stopped cleanly")

    async def _drain(self, runtime: ConsumerRuntime, grace_seconds: float) -> None:
        await runtime.drain(grace_seconds)
        if not any(one.dispatcher.queued for one in self._runtimes):
            self._shutdown_watch.allow(SHUTDOWN_TAIL_SECONDS)

    async def _end(self, fault: StandsStill) -> None:
        """End the worker with status 1, also if the fault blocks its shutdown."""
        self._shutdown_watch.allow(self.settings.shutdown_grace_seconds + SHUTDOWN_TAIL_SECONDS)
        await self.crash(fault)

    async def _pause(self, seconds: float) -> bool:
        await self.sleep(seconds)
        return bool(self.should_stop)

    def _create_directories(self) -> None:
        """Make no data directory: Faust stores no tables."""


async def _run_to_its_end(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a background function. An error is logged, and the function starts again after a wait."""
    wait_seconds, loop = BACKGROUND_RESTART_SECONDS, asyncio.get_running_loop()
    while True:
        started = loop.time()
        try:
            return await work()
        except asyncio.CancelledError:
            raise
        except BaseException:  # sys.exit would end the worker
            if loop.time() - started > MAX_BACKGROUND_RESTART_SECONDS:
                wait_seconds = BACKGROUND_RESTART_SECONDS
            name = getattr(work, "__name__", type(work).__name__)
            logger.exception(
                LogLine(
                    "Task beside the consumers failed, it starts again",
                    task=name,
                    wait_seconds=wait_seconds,
                )
            )
        await asyncio.sleep(wait_seconds)
        wait_seconds = min(2 * wait_seconds, MAX_BACKGROUND_RESTART_SECONDS)


def create_app() -> RelayApp:
    """Make the app that ``faust -A <module> worker`` runs, with settings from the environment.

    Add its consumers with ``import_consumers``::

        app = create_app()
        app.import_consumers("agents")

    Connects nothing yet.

    Raises:
        SystemExit: A setting is wrong; one line tells which.
    """
    # `faust` has this folder on the path only while it imports the application's module.
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    open_closed_streams()
    escape_unencodable()
    os.umask(OWNER_ONLY)  # SQLite's and RocksDB's files contain orders
    if load_log_format() == "json":
        json_format.set_up()
    mode.loop.use("uvloop")
    with _errors_in_one_line():
        settings = load_settings()
        app = RelayApp(settings)
    use_worker(app, settings)
    return app


@contextmanager
def _errors_in_one_line() -> Iterator[None]:
    """End the process with one line for wrong settings and wrong consumers.

    Raises:
        SystemExit: Its code is the line, which Python prints. With LOG_FORMAT=json the line is
            logged, and the code is 1.
    """
    try:
        yield
    except (InvalidSettings, InvalidDatabaseUrl, InvalidConsumer) as error:
        if load_log_format() == "json":
            logger.critical(str(error))
            raise SystemExit(1) from None
        raise SystemExit(str(error)) from None
