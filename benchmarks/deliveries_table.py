"""``python -m benchmarks.deliveries_table``: the cost of the deliveries table alone, per record.

Lookup, storing, writing and acknowledgement, in processor time of all threads of the process.
Orders come at a steady pace, as a worker finishes them; the brokers are the embedded cluster, in
another process. ``off`` is the pace alone. ``bare`` only gives the same bytes to librdkafka, in
batches of the table's size with one callback each. Runs alternate, so that other load on the
machine affects all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import uvloop
from confluent_kafka import Producer

from benchmarks.brokers import EMBEDDED_MAX_RECORDS, embedded
from benchmarks.processes import run_benchmark
from order_relay.deliveries.changelog import GATHER_SECONDS, Changelog
from order_relay.deliveries.entries import encode_entry, entry_key, make_entry
from order_relay.deliveries.recovery import Recovery
from order_relay.deliveries.stores import MemoryStore, RocksStore, Store
from order_relay.deliveries.table import DeliveriesTable
from order_relay.delivery.outcome import Outcome
from order_relay.kafka.producer import KafkaProducer, producer_config
from order_relay.model.record import Record
from order_relay.settings import load_settings
from order_relay.worker.relay_app import GC_THRESHOLDS

PARTITIONS = 4  # of a topic on the embedded cluster
A_SECOND = 8_000
AT_A_TIME = 80
GATHERED = round(A_SECOND * GATHER_SECONDS)
LIMIT_SECONDS = 30.0
_ROW = "{:<10}{:>16}{:>16}{:>12}"


@dataclass(frozen=True, slots=True)
class Cost:
    """Processor time per record, in microseconds: of all threads, and of the event loop."""

    total_us: float
    loop_us: float


Finish = Callable[[Record, Outcome], None]


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.deliveries_table")
    parser.add_argument(
        "--records", type=int, default=40_000, metavar="N", help=f"orders a run, in {GATHERED}s"
    )
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="runs of each kind")
    given = parser.parse_args(arguments)
    if given.records not in range(GATHERED, EMBEDDED_MAX_RECORDS + 1, GATHERED) or given.repeat < 1:
        parser.error(
            f"--records: {GATHERED}, {2 * GATHERED}, ... {EMBEDDED_MAX_RECORDS:,}; --repeat: from 1"
        )
    logging.disable(logging.INFO)
    gc.set_threshold(*GC_THRESHOLDS)

    def run() -> None:
        costs: dict[str, list[Cost]] = {name: [] for name in RUNS}
        with embedded() as brokers:
            for _ in range(given.repeat):
                for name, run in RUNS.items():
                    costs[name].append(uvloop.run(run(brokers.servers, _orders(given.records))))
        print(_table(costs))

    return run_benchmark("deliveries_table", run)


def _orders(records: int) -> list[tuple[Record, Outcome]]:
    now_ms = int(time.time() * 1000)
    return [
        (
            Record(
                "order-paid-events",
                number % PARTITIONS,
                number // PARTITIONS,
                1,
                b"%d" % number,
                b"{}",
                timestamp_ms=now_ms,
            ),
            Outcome(True, 1, number, "2025-12-19T10:30:00", now_ms),
        )
        for number in range(records)
    ]


async def _measure(
    orders: Sequence[tuple[Record, Outcome]], finish: Finish, is_done: Callable[[], bool]
) -> Cost:
    """Finish the orders at the pace, and wait until Kafka has their entries."""
    began, total, loop = time.monotonic(), time.process_time(), time.thread_time()
    for number in range(0, len(orders), AT_A_TIME):
        for record, outcome in orders[number : number + AT_A_TIME]:
            finish(record, outcome)
        await asyncio.sleep(max(0.0, began + number / A_SECOND - time.monotonic()))
    async with asyncio.timeout(LIMIT_SECONDS):
        while not is_done():  # noqa: ASYNC110 - may become true in librdkafka's thread
            await asyncio.sleep(0.01)
    return Cost(
        (time.process_time() - total) / len(orders) * 1e6,
        (time.thread_time() - loop) / len(orders) * 1e6,
    )


async def _off(servers: str, orders: Sequence[tuple[Record, Outcome]]) -> Cost:
    finished: list[Record] = []

    def finish(record: Record, outcome: Outcome) -> None:
        finished.append(record)

    return await _measure(orders, finish, lambda: len(finished) == len(orders))


async def _bare(servers: str, orders: Sequence[tuple[Record, Outcome]]) -> Cost:
    producer = Producer(producer_config(load_settings(kafka_bootstrap_servers=servers)))
    topic = _new_topic()
    producer.list_topics(topic, LIMIT_SECONDS)
    entries = [
        encode_entry(make_entry(record, outcome.order_id or 0, outcome, outcome.started_ms, None))
        for record, outcome in orders
    ]
    acknowledged: list[object] = []

    def on_delivery(error: object, message: object) -> None:
        acknowledged.append(error)

    gathered: list[tuple[int, int]] = []

    def finish(record: Record, outcome: Outcome) -> None:
        gathered.append((record.partition, int(outcome.order_id or 0)))
        if len(gathered) == GATHERED:
            for partition, order_id in gathered:
                producer.produce(
                    topic, entries[order_id], entry_key(order_id), partition, on_delivery
                )
            gathered.clear()

    polling = True

    def poll() -> None:
        while polling:
            producer.poll(0.5)

    poller = asyncio.create_task(asyncio.to_thread(poll))
    try:
        return await _measure(orders, finish, lambda: len(acknowledged) == len(orders))
    finally:
        polling = False
        await poller


async def _in_memory(servers: str, orders: Sequence[tuple[Record, Outcome]]) -> Cost:
    return await _table_run(servers, orders, lambda partition: MemoryStore())


async def _in_rocksdb(servers: str, orders: Sequence[tuple[Record, Outcome]]) -> Cost:
    with tempfile.TemporaryDirectory() as folder:
        return await _table_run(
            servers, orders, lambda partition: RocksStore(Path(folder) / str(partition))
        )


async def _table_run(
    servers: str,
    orders: Sequence[tuple[Record, Outcome]],
    open_store: Callable[[int], Store],
) -> Cost:
    settings = load_settings(kafka_bootstrap_servers=servers)
    topic = _new_topic()
    producer = KafkaProducer(settings)
    finished: list[Record] = []
    table = DeliveriesTable(
        Changelog(producer, topic),
        Recovery(settings, topic, producer.ping),
        open_store,
        finished.append,
        lambda seconds: None,
        retention_seconds=3600.0,
    )

    def finish(record: Record, outcome: Outcome) -> None:
        assert not table.is_delivered(record, outcome.order_id or 0)
        table.finished(record, outcome)

    await producer.start()
    try:
        table.assigned(range(PARTITIONS))
        assert await table.until_ready()
        cost = await _measure(orders, finish, lambda: len(finished) == len(orders))
        assert all(table.is_delivered(record, outcome.order_id or 0) for record, outcome in orders)
        return cost
    finally:
        await table.close()
        await producer.stop()


def _new_topic() -> str:
    return f"order-relay-benchmark-{uuid.uuid4().hex[:8]}"


RUNS = {"off": _off, "bare": _bare, "memory": _in_memory, "rocksdb": _in_rocksdb}


def _table(costs: Mapping[str, Sequence[Cost]]) -> str:
    off = costs["off"]

    def above_off(cost: Cost, number: int) -> float:
        return cost.total_us - off[number].total_us

    lines = [_ROW.format("", "CPU us/record", "in the loop", "to bare")]
    for name, of_name in costs.items():
        ratio = median(
            above_off(cost, number) / above_off(costs["bare"][number], number)
            for number, cost in enumerate(of_name)
        )
        lines.append(
            _ROW.format(
                name,
                f"{median(cost.total_us for cost in of_name):.1f}",
                f"{median(cost.loop_us for cost in of_name):.1f}",
                "" if name in ("off", "bare") else f"x {ratio:.2f}",
            )
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
