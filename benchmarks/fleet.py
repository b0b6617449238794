"""Several workers of one group, started, asked and measured together."""

from __future__ import annotations

import re
import socket
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.brokers import Brokers, Topic
from benchmarks.processes import CannotMeasure, Child, Sink

SHARED_SECONDS = 90.0
LOOK_SECONDS = 0.2


class Fleet:
    """``faust -A app worker``, so many of them, in a group of their own, while the block runs."""

    def __init__(
        self, brokers: Brokers, topic: Topic, sink: Sink, *, workers: int, in_flight: int
    ) -> None:
        self._everything = ExitStack()
        folder = Path(self._everything.enter_context(tempfile.TemporaryDirectory()))
        group = topic.new_group()
        self._ports = _free_ports(workers)
        self._workers = []
        for number, port in enumerate(self._ports):
            own = folder / str(number)
            own.mkdir()
            worker = Child(
                ["-m", "faust", "-A", "app", "worker", "-l", "warn"],
                environment={
                    "KAFKA_BOOTSTRAP_SERVERS": brokers.servers,
                    "ORDER_PAID_TOPIC": topic.name,
                    "DLQ_TOPIC": topic.dlq_name,
                    "CONSUMER_GROUP_ID": group,
                    "EXTERNAL_LOGGER_URL": sink.url,
                    "MAX_IN_FLIGHT": str(in_flight),
                    "WEB_PORT": str(port),
                },
                log=own / "log",
                folder=own,
            )
            self._workers.append(self._everything.enter_context(worker))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._everything.close()

    def wait_until_shared(self, partitions: int) -> None:
        """Wait until each worker has its share of the partitions, be it none.

        Raises:
            CannotMeasure: One ended, or that took too long.
        """
        workers = len(self._workers)
        wanted = sorted(partitions // workers + (n < partitions % workers) for n in range(workers))
        deadline = time.monotonic() + SHARED_SECONDS
        while (shares := sorted(map(_assigned, self._ports))) != wanted:
            self.check()
            if time.monotonic() > deadline:
                raise CannotMeasure(f"partitions are shared {shares}, not {wanted}")
            time.sleep(LOOK_SECONDS)

    def check(self) -> None:
        """Raise ``CannotMeasure`` when one has ended."""
        for worker in self._workers:
            worker.check()

    def cpu_seconds(self) -> float:
        """User and system time of all."""
        return sum(worker.cpu_seconds() for worker in self._workers)


def _assigned(port: int) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    except (OSError, urllib.error.URLError):
        return -1
    found = re.search(r"^order_relay_assigned_partitions\{.*?\} (\S+)$", text, re.MULTILINE)
    return int(float(found[1])) if found else -1


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
