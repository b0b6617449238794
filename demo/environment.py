"""All the parties of the demonstration, put up and taken down together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path

from demo.collector import Books
from demo.consumer_ledger import ConsumerLedger
from demo.dead_letter_reader import DeadLetterReader, TopicReader
from demo.delivery_times import WINDOW_SECONDS
from demo.demo_settings import demo_settings, worker_environment
from demo.embedded_cluster import SAFE_BACKLOG, EmbeddedCluster
from demo.kafka_outages import KafkaOutages, OutagePlan
from demo.logger_script import FAILURES, Kind, LoggerScript, Outages
from demo.options import ORDER_LOGGING, Options
from demo.order_shop import OrderGenerator, OrderShop
from demo.sample_logger import HOST, SampleLogger
from demo.saved_rows import SavedRows
from demo.shop_database import ShopDatabase, database_url
from demo.snapshot import LoggerFigures, Phase, RateMeter, Snapshot, WorkerState
from demo.worker_log import WorkerLog
from demo.worker_probe import WorkerProbe
from demo.worker_process import WorkerProcess, check_web_port, topics_of_consumers
from order_relay.kafka.producer import KafkaProducer
from order_relay.settings import Settings

# On top of the worker's own deadline: leaving the group, closing connections.
_STOP_MARGIN_SECONDS = 20.0
# Consumers of the examples that call a service, and the variable with its URL: a sample logger,
# too, at a free port.
_SERVICES = {"notifications": "NOTIFICATIONS_SERVICE_URL"}


@dataclass
class Stage:
    """The parties, and how they look at one moment.

    Attributes:
        phase: How far the demonstration is; set by the play.
        begun_at: When the stage was up, on the monotonic clock.
        opened_at: When the shop opened.
    """

    options: Options
    settings: Settings
    books: Books
    logger: SampleLogger
    cluster: EmbeddedCluster
    kafka: KafkaOutages
    database: ShopDatabase
    saved: SavedRows
    shop: OrderShop
    readers: Sequence[TopicReader]
    consumers: Sequence[ConsumerLedger]
    worker: WorkerProcess
    probe: WorkerProbe
    log: WorkerLog
    phase: Phase = Phase.STARTING
    begun_at: float = field(default_factory=time.monotonic)
    opened_at: float | None = None
    _paid_rate: RateMeter = field(default_factory=RateMeter)
    _delivered_rate: RateMeter = field(default_factory=RateMeter)
    _was_ready: bool = False

    @property
    def open_seconds(self) -> float:
        """Since the shop opened; 0 before."""
        return 0.0 if self.opened_at is None else time.monotonic() - self.opened_at

    def is_settled(self) -> bool:
        """Whether nothing is on its way, neither in Kafka nor in the shop's database."""
        balance = self.books.ledger.balance()
        in_kafka = balance.paid - balance.saved
        return (
            not balance.open
            and not self.saved.pending
            and all(
                one.closes and one.published >= in_kafka
                for one in (consumer.balance() for consumer in self.consumers)
                if one.topic == self.settings.order_paid_topic
            )
        )

    def snapshot(self) -> Snapshot:
        """Gather what is to be shown now."""
        now = time.monotonic()
        balance = self.books.ledger.balance()
        self.log.read_on()
        return Snapshot(
            elapsed_seconds=now - self.begun_at,
            goal=self.options.orders,
            phase=self.phase,
            balance=balance,
            paid_per_second=self._paid_rate.read(now, balance.paid),
            delivered_per_second=self._delivered_rate.read(now, balance.delivered),
            times=self.books.times.percentiles(since=now - WINDOW_SECONDS),
            worker=self._worker_state(),
            metrics=self.probe.metrics,
            logger=self.logger_figures(),
            kafka_is_down=self.cluster.is_down,
            kafka_outages=self.kafka.begun,
            warnings=self.log.warnings,
            log_path=str(self.worker.log_path),
            consumers=tuple(one.balance() for one in self.consumers),
            console_url=f"http://{self.settings.web_host}:{self.settings.web_port}/",
        )

    def logger_figures(self) -> LoggerFigures:
        """Gather what the sample logger did."""
        answers = self.logger.answers
        return LoggerFigures(
            requests=self.logger.requests,
            accepted=answers[Kind.ACCEPTED],
            refused=answers[Kind.REFUSED],
            failures={str(kind): answers[kind] for kind in FAILURES},
            slow=self.logger.slow,
            outages=self.logger.outages,
            is_down=self.logger.is_down,
        )

    def _worker_state(self) -> WorkerState:
        self._was_ready = self._was_ready or self.probe.ready
        if self.worker.exit_code is not None:
            return WorkerState.ENDED
        if self.phase is Phase.STOPPING:
            return WorkerState.DRAINING
        if self.probe.ready:
            return WorkerState.READY
        if not self._was_ready:
            return WorkerState.STARTING
        return WorkerState.NOT_READY if self.probe.answers else WorkerState.SILENT


@asynccontextmanager
async def put_up(
    options: Options, folder: Path, surroundings: Mapping[str, str]
) -> AsyncIterator[Stage]:
    """Start everything but the shop; at the end, whatever is left of it is ended.

    Args:
        options: What the user asked for.
        folder: Empty folder for the worker's log, and to run it in.
        surroundings: This process's environment.

    Raises:
        CannotRun: A port is in use, the embedded cluster does not start, or there is something
            wrong with the consumers.
    """
    settings_at = partial(
        demo_settings,
        database_url=database_url(folder),
        logger_port=options.logger_port,
        web_port=options.web_port,
        consumers=options.consumers,
        consumer_folders=options.consumer_folders,
    )
    order_topics = [
        Settings.model_fields[name].default for name in ("order_paid_topic", "dlq_topic")
    ]
    others: dict[str, tuple[str, str]] = {}
    if options.consumers != (ORDER_LOGGING,):
        environment = worker_environment(settings_at(servers="127.0.0.1:1"), surroundings)
        others = await topics_of_consumers(environment, folder)
        others.pop(ORDER_LOGGING)
    async with AsyncExitStack() as stack:
        books = Books()
        logger = SampleLogger(
            LoggerScript(options.seed, Outages.for_orders(options.orders)), books.logged
        )
        check_web_port(options.web_port)
        await logger.start(options.logger_port)
        stack.push_async_callback(logger.stop)

        cluster = EmbeddedCluster()
        topics = dict.fromkeys((*order_topics, *chain.from_iterable(others.values())))
        servers = await asyncio.to_thread(cluster.start, list(topics))
        stack.callback(cluster.stop)
        settings = settings_at(servers=servers)
        environment = worker_environment(settings, surroundings)

        producer = KafkaProducer(settings)
        await producer.start()
        stack.push_async_callback(producer.stop)
        database = ShopDatabase(settings, producer)
        stack.push_async_callback(database.close)
        await database.open()
        readers: list[TopicReader] = [DeadLetterReader(settings, books.dead_lettered)]
        consumers = []
        for name, (topic, dead_letter_topic) in others.items():
            one = ConsumerLedger(name, topic, has_service=name in _SERVICES)
            consumers.append(one)
            readers.append(TopicReader(settings, topic, one.published))
            readers.append(TopicReader(settings, dead_letter_topic, one.dead_lettered))
            if one.has_service:
                script = LoggerScript(options.seed + 1, Outages.for_orders(options.orders))
                service = SampleLogger(script, one.received)
                port = await service.start(0)
                stack.push_async_callback(service.stop)
                environment[_SERVICES[name]] = f"http://{HOST}:{port}/logs"
        for reader in readers:
            reader.start()
            stack.push_async_callback(reader.finish)

        worker = WorkerProcess(
            folder / "worker.log",
            environment,
            grace_seconds=settings.shutdown_grace_seconds + _STOP_MARGIN_SECONDS,
        )
        stack.push_async_callback(worker.kill)
        await worker.start()
        yield Stage(
            options=options,
            settings=settings,
            books=books,
            logger=logger,
            cluster=cluster,
            kafka=await stack.enter_async_context(
                KafkaOutages(
                    cluster,
                    OutagePlan.for_orders(options.orders),
                    lambda: books.ledger.balance().paid,
                )
            ),
            database=database,
            saved=await stack.enter_async_context(SavedRows(database, books.ledger)),
            shop=OrderShop(
                OrderGenerator(options.seed),
                database,
                books,
                rate=options.rate,
                may_pay=lambda: (
                    max(books.ledger.balance().open, *(one.balance().open for one in consumers), 0)
                    < SAFE_BACKLOG
                ),
            ),
            readers=readers,
            consumers=consumers,
            worker=worker,
            probe=await stack.enter_async_context(WorkerProbe(settings, consumers)),
            log=WorkerLog(worker.log_path),
        )
