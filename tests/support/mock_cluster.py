"""librdkafka's mock cluster as a process: ``mock_cluster.py`` writes its servers, then obeys.

One JSON list a line on stdin: a command and its arguments; one line of JSON back for each. The
cluster is driven by librdkafka's public test interface (rdkafka_mock.h) in the library inside the
confluent-kafka wheel. It ends with its stdin.
"""

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import confluent_kafka

PRODUCER = 0
ERROR_BYTES = 512
INITIAL_REBALANCE_MS = 100


def load_librdkafka() -> ctypes.CDLL:
    """The library that confluent_kafka itself uses."""
    package = Path(confluent_kafka.__file__).parent
    for folder in (package.parent / "confluent_kafka.libs", package / ".dylibs"):
        for path in sorted(folder.glob("librdkafka*")):
            return ctypes.CDLL(str(path))
    raise SystemExit("no librdkafka in the confluent-kafka package: install it from PyPI's wheel")


class MockCluster:
    """Brokers 1 to ``brokers`` in this process."""

    def __init__(self, brokers: int) -> None:
        lib = self._lib = load_librdkafka()
        lib.rd_kafka_conf_new.restype = ctypes.c_void_p
        lib.rd_kafka_new.restype = ctypes.c_void_p
        lib.rd_kafka_new.argtypes = (
            ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t,
        )  # fmt: skip
        lib.rd_kafka_mock_cluster_new.restype = ctypes.c_void_p
        lib.rd_kafka_mock_cluster_new.argtypes = (ctypes.c_void_p, ctypes.c_int)
        lib.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
        lib.rd_kafka_mock_cluster_bootstraps.argtypes = (ctypes.c_void_p,)
        error = ctypes.create_string_buffer(ERROR_BYTES)
        lib.rd_kafka_conf_set.argtypes = (
            ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t,
        )  # fmt: skip
        config = lib.rd_kafka_conf_new()
        lib.rd_kafka_conf_set(config, b"log_level", b"0", error, ERROR_BYTES)
        handle = lib.rd_kafka_new(PRODUCER, config, error, ERROR_BYTES)
        if not handle:
            raise SystemExit(f"librdkafka does not start: {error.value.decode()}")
        cluster = lib.rd_kafka_mock_cluster_new(handle, brokers)
        if not cluster:
            raise SystemExit("librdkafka made no mock cluster")
        self._cluster = ctypes.c_void_p(cluster)
        self.first_join_delay(INITIAL_REBALANCE_MS)

    def servers(self) -> str:
        """The bootstrap servers."""
        servers: bytes = self._lib.rd_kafka_mock_cluster_bootstraps(self._cluster)
        return servers.decode()

    def first_join_delay(self, milliseconds: int) -> int:
        """How long the first member of a new group waits for others."""
        # The default is 3 s; a worker alone has nobody to wait for.
        self._lib.rd_kafka_mock_group_initial_rebalance_delay_ms(self._cluster, milliseconds)
        return 0

    def create_topic(self, name: str, partitions: int, replication: int) -> int:
        """Make a topic."""
        return int(
            self._lib.rd_kafka_mock_topic_create(
                self._cluster, name.encode(), partitions, replication
            )
        )

    def topic_error(self, name: str, code: int) -> int:
        """Answer questions about a topic with an error; 0 ends that."""
        self._lib.rd_kafka_mock_topic_set_error(self._cluster, name.encode(), code)
        return 0

    def down(self, broker: int) -> int:
        """Refuse connections to a broker and cut the open ones; what it holds stays."""
        return int(self._lib.rd_kafka_mock_broker_set_down(self._cluster, broker))

    def up(self, broker: int) -> int:
        """Let a broker be reached again."""
        return int(self._lib.rd_kafka_mock_broker_set_up(self._cluster, broker))

    def refuse(self, api_key: int, code: int, count: int) -> int:
        """Answer the next requests of a kind with an error."""
        errors = (ctypes.c_int * count)(*[code] * count)
        self._lib.rd_kafka_mock_push_request_errors_array(
            self._cluster, ctypes.c_int16(api_key), ctypes.c_size_t(count), errors
        )
        return 0

    def relent(self, api_key: int) -> int:
        """Forget the errors that ``refuse`` has left over."""
        self._lib.rd_kafka_mock_clear_request_errors(self._cluster, ctypes.c_int16(api_key))
        return 0


COMMANDS = {"first_join_delay", "create_topic", "topic_error", "down", "up", "refuse", "relent"}


def main() -> None:
    """Hold the cluster open until stdin ends."""
    cluster = MockCluster(int(sys.argv[1]))
    print(json.dumps(cluster.servers()), flush=True)
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        result: Any = "unknown command"
        if command in COMMANDS:
            result = getattr(cluster, command)(*arguments)
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
