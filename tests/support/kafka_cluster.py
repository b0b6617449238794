"""A real Apache Kafka cluster for tests: three KRaft brokers on loopback, and ways to hurt them.

    with RealKafka() as kafka:
        kafka.create_topic("orders", partitions=3)
        kafka.kill(kafka.leader_of("orders", 0))
        ...
        kafka.revive()

Every method blocks its thread, some for seconds, and may be called from any thread: a coroutine
calls `await asyncio.to_thread(kafka.revive, 2)`. No JVM outlives the process that started it,
whichever way that ends (on Linux; elsewhere only a SIGKILL of that process leaves them).

By hand, until Ctrl-C: `python -m tests.support.kafka_cluster --ports 19092,29092,39092`.
"""

import argparse
import signal
import sys
import threading
from collections.abc import Sequence

from tests.support.kafka.cluster import BROKERS, RealKafka
from tests.support.kafka.distribution import KafkaUnavailable, kafka_version, unavailable_reason

__all__ = ["KafkaUnavailable", "RealKafka", "unavailable_reason"]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.support.kafka_cluster",
        description=f"Run Apache Kafka {kafka_version()}, three brokers, until Ctrl-C.",
    )
    parser.add_argument(
        "--ports", help="the three ports, such as 19092,29092,39092; else free ones"
    )
    return parser.parse_args(arguments)


def _ports(text: str | None) -> list[int] | None:
    if text is None:
        return None
    ports = [int(port) if port.strip().isdecimal() else 0 for port in text.split(",")]
    if not all(0 < port < 65_536 for port in ports):
        raise ValueError(f"--ports: {BROKERS} numbers from 1 to 65535 are needed, not {text}")
    return ports


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a cluster in the foreground until Ctrl-C or SIGTERM; return the exit status."""
    options = _parse(arguments)
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    try:
        with RealKafka(ports=_ports(options.ports)) as kafka:
            print(f"Apache Kafka {kafka_version()} is ready: {kafka.bootstrap_servers}", flush=True)
            ended.wait()
    except (KafkaUnavailable, RuntimeError, TimeoutError, ValueError) as failure:
        print(failure, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
