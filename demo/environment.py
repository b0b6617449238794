"""All the parties of the demo, started and stopped together."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

from aiokafka.partitioner import murmur2
from confluent_kafka import Message

from demo.collector import Collector
from demo.command_line import ORDER_LOGGING, Options
from demo.kafka import PARTITIONS, SAFE_BACKLOG, EmbeddedCluster
from demo.ledger import ConsumerLedger
from demo.logger import HOST, LoggerScript, SampleLogger, first_outage_after
from demo.settings import demo_settings, worker_environment, write_commands
from demo.shop import BROKEN_EVERY, OrderGenerator, OrderShop, ShopDatabase
from demo.worker import WorkerProcess, check_web_port, topics_of_consumers
from order_relay.kafka.producer import KafkaProducer

# Long enough for publishes to be given up and saved.
OUTAGE_SECONDS = 5.0
# On top of the worker's own deadline: leaving the group, closing connections.
_STOP_MARGIN_SECONDS = 20.0
_LOOK_SECONDS = 0.1
# Consumers of the examples that call a service, and the variable with its URL: another sample
# logger, at a free port.
_SERVICES = {"notifications": "NOTIFICATIONS_SERVICE_URL"}


@dataclass(frozen=True)
class Environment:
    """The parties that the scenario directs.

    Attributes:
        outages: The task that takes Kafka down now and then.
        watching: The collector's tasks that end with ``finish``.
        commands: For another terminal.
    """

    collector: Collector
    database: ShopDatabase
    shop: OrderShop
    worker: WorkerProcess
    outages: asyncio.Task[None]
    watching: Sequence[asyncio.Task[None]]
    commands: Sequence[str]

    async def finish(self) -> None:
        """Read what the worker has left in Kafka and in the database. May be called twice."""
        self.collector.finish()
        await asyncio.wait(self.watching)


async def end(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait for its end. May be called twice."""
    task.cancel()
    await asyncio.wait([task])


@asynccontextmanager
async def open_environment(
    options: Options, folder: Path, surroundings: Mapping[str, str]
) -> AsyncIterator[Environment]:
    """Start everything but the shop; at the end, whatever is left of it is ended.

    The worker runs in ``folder``, an empty one; ``surroundings`` is this process's environment.

    Raises:
        CannotRun: A port is in use, the embedded cluster does not start, or there is something
            wrong with the consumers.
    """
    async with AsyncExitStack() as stack:
        first_outage = first_outage_after(options.orders)
        script = LoggerScript(options.seed, first_outage)
        collector = Collector(options, script)

        async def start_logger(
            script: LoggerScript, on_accepted: Callable[[str], None], port: int
        ) -> int:
            logger = SampleLogger(script, on_accepted)
            stack.push_async_callback(logger.stop)
            return await logger.start(port)

        check_web_port(options.web_port)
        await start_logger(script, collector.logged, options.logger_port)
        cluster = EmbeddedCluster()
        stack.callback(cluster.stop)
        settings = demo_settings(options, folder, cluster.servers)
        environment = worker_environment(settings, surroundings)
        topics = {ORDER_LOGGING: (settings.order_paid_topic, settings.dlq_topic)}
        if len(options.consumers) > 1:
            topics |= await topics_of_consumers(environment, folder)
        for name in {*chain.from_iterable(topics.values())}:
            cluster.make_topic(name, PARTITIONS)

        handlers: dict[str, list[Callable[[Message], None]]] = defaultdict(list)
        handlers[settings.dlq_topic].append(collector.dead_lettered)
        del topics[ORDER_LOGGING]
        for name, (topic, dead_letter_topic) in topics.items():
            one = ConsumerLedger(name, topic, has_service=name in _SERVICES)
            collector.consumers.append(one)
            handlers[topic].append(one.count_record)
            handlers[dead_letter_topic].append(one.count_dead_letter)
            if one.has_service:
                other_script = LoggerScript(options.seed + 1, first_outage)
                port = await start_logger(other_script, one.count_receipt, 0)
                environment[_SERVICES[name]] = f"http://{HOST}:{port}/logs"

        producer = KafkaProducer(settings)
        await producer.start()
        stack.push_async_callback(producer.stop)
        database = ShopDatabase(settings, producer)
        stack.push_async_callback(database.close)
        await database.open()
        grace_seconds = settings.shutdown_grace_seconds + _STOP_MARGIN_SECONDS
        worker = WorkerProcess(folder / "worker.log", environment, grace_seconds)
        stack.push_async_callback(worker.kill)
        await worker.start()

        def may_pay() -> bool:
            waiting = (collector.ledger.balance().open, *(one.open for one in collector.consumers))
            return max(waiting) < SAFE_BACKLOG

        url = str(settings.own_url)
        asking = asyncio.create_task(collector.ask_worker(url))
        stack.push_async_callback(end, asking)
        outages = asyncio.create_task(
            run_outages(cluster.down, cluster.up, collector, outage_plan(options.orders))
        )
        stack.push_async_callback(end, outages)
        made = Environment(
            collector,
            database,
            OrderShop(
                OrderGenerator(options.seed),
                database,
                collector,
                rate=options.rate,
                may_pay=may_pay,
            ),
            worker,
            outages,
            watching=[
                asyncio.create_task(collector.watch_table(database)),
                asyncio.create_task(collector.read_topics(settings, handlers)),
            ],
            commands=write_commands(
                folder,
                environment,
                surroundings,
                consumer=ORDER_LOGGING if topics else "",
                dead_letter=_first_dead_letter(options.seed),
            ),
        )
        collector.places = {
            "Worker's log": str(worker.log_path),
            "Its console": f"{url}/",
            "Its commands": made.commands[0],
        }
        stack.push_async_callback(made.finish)
        yield made


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
    down: Callable[[], None],
    up: Callable[[], None],
    collector: Collector,
    plan: tuple[int, int],
    seconds: float = OUTAGE_SECONDS,
) -> None:
    """Take the brokers down and up as planned until this is cancelled; then they are up."""
    due, every = plan
    while True:
        # The ledger counts; there is no event to await.
        while collector.ledger.balance().paid <= due:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_SECONDS)
        due += every
        collector.kafka_is_down = True
        collector.kafka_outages += 1
        down()
        try:
            await asyncio.sleep(seconds)
        finally:
            up()
            collector.kafka_is_down = False
