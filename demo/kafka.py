"""librdkafka's mock cluster: brokers that speak the real protocol inside this process.

``python -m demo.kafka`` runs it by itself, until SIGTERM or Ctrl-C.
"""

from __future__ import annotations

import asyncio
import ctypes

import click
from confluent_kafka import cimpl

from demo.command_line import CannotRun, run_command, run_until_stopped

BROKERS = 3
PARTITIONS = 4
LIMITS = (
    f"Embedded Kafka: {BROKERS} brokers in memory, for trying out and for tests only; "
    "nothing is kept when it ends."
)
# Each partition keeps 5 MiB or 100,000 records and then drops the oldest, read or not. At 4
# partitions a topic and a few hundred bytes an order, this many waiting are safe.
SAFE_BACKLOG = 20_000
# After a worker has left, these brokers admit no member to its group before the session has ended.
SESSION_TIMEOUT_MS = 6_000

_PRODUCER = 0
_ERROR_BYTES = 512


class EmbeddedCluster:
    """Brokers in this process, from construction to ``stop``. Calls take milliseconds.

    It makes topics on first use. It uses librdkafka's public test interface (``rdkafka_mock.h``):
    confluent-kafka starts such brokers too, but cannot take them down and up again. They listen
    at ``servers``.
    """

    def __init__(self, brokers: int = BROKERS) -> None:
        """Start the brokers.

        Raises:
            CannotRun: This librdkafka has no mock cluster, or it does not start.
        """
        self._brokers = range(1, brokers + 1)
        try:
            self._lib = _librdkafka()
            self._handle = _start(self._lib, brokers)
        except OSError as error:
            raise CannotRun(
                f"the embedded Kafka cluster does not start ({error}): "
                "install confluent-kafka from PyPI's wheel, which has one in it"
            ) from error
        self._cluster = self._lib.rd_kafka_handle_mock_cluster(self._handle)
        self.servers = self._lib.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()

    def make_topic(self, name: str, partitions: int) -> None:
        """Make a topic with a replica on every broker.

        Raises:
            OSError: It is not made.
        """
        code = self._lib.rd_kafka_mock_topic_create(
            self._cluster, name.encode(), partitions, len(self._brokers)
        )
        if code:
            raise OSError(f"topic {name} is not made (error {code})")

    def down(self) -> None:
        """Refuse connections and cut the open ones; what the brokers hold stays."""
        for number in self._brokers:
            self._lib.rd_kafka_mock_broker_set_down(self._cluster, number)

    def up(self) -> None:
        """Let the brokers be reached again. May be called twice."""
        for number in self._brokers:
            self._lib.rd_kafka_mock_broker_set_up(self._cluster, number)

    def stop(self) -> None:
        """End the brokers and all that they hold."""
        self._lib.rd_kafka_destroy(self._handle)


def _start(lib: ctypes.CDLL, brokers: int) -> int:
    error = ctypes.create_string_buffer(_ERROR_BYTES)
    config = lib.rd_kafka_conf_new()
    # The log would go to stderr, over the live view.
    for name, value in ((b"log_level", 0), (b"test.mock.num.brokers", brokers)):
        if lib.rd_kafka_conf_set(config, name, b"%d" % value, error, _ERROR_BYTES):
            raise OSError(error.value.decode())
    if not (handle := lib.rd_kafka_new(_PRODUCER, config, error, _ERROR_BYTES)):
        raise OSError(error.value.decode())
    return int(handle)


def _librdkafka() -> ctypes.CDLL:
    """Return the library that confluent-kafka itself has loaded, wherever its wheel keeps it."""
    # A name is looked for in the extension module and then in what it is linked with.
    lib = ctypes.CDLL(cimpl.__file__)
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    try:
        for name, result, arguments in (
            ("rd_kafka_conf_new", pointer, ()),
            ("rd_kafka_conf_set", number, (pointer, text, text, text, ctypes.c_size_t)),
            ("rd_kafka_new", pointer, (number, pointer, text, ctypes.c_size_t)),
            ("rd_kafka_destroy", None, (pointer,)),
            ("rd_kafka_handle_mock_cluster", pointer, (pointer,)),
            ("rd_kafka_mock_cluster_bootstraps", text, (pointer,)),
            ("rd_kafka_mock_topic_create", number, (pointer, text, number, number)),
            ("rd_kafka_mock_broker_set_down", number, (pointer, ctypes.c_int32)),
            ("rd_kafka_mock_broker_set_up", number, (pointer, ctypes.c_int32)),
        ):
            function = getattr(lib, name)
            function.restype, function.argtypes = result, arguments
    except AttributeError as error:
        raise OSError(f"librdkafka has no {name}") from error
    return lib


@click.command(help=LIMITS)
def main() -> None:
    """Run the brokers until SIGTERM or Ctrl-C."""
    cluster = EmbeddedCluster()
    click.echo(
        f"{LIMITS}\nIn other terminals, for workers and commands:\n\n"
        f"export KAFKA_BOOTSTRAP_SERVERS={cluster.servers}\n"
        f"export KAFKA_DECLARE_TOPICS=false KAFKA_SESSION_TIMEOUT_MS={SESSION_TIMEOUT_MS}"
    )
    run_until_stopped(asyncio.Event().wait())
    cluster.stop()


if __name__ == "__main__":
    run_command(main)
