"""librdkafka's mock brokers, by its public test interface (``rdkafka_mock.h``).

confluent-kafka starts them too, but cannot take them down and up again.
"""

from __future__ import annotations

import ctypes

from confluent_kafka import cimpl

_PRODUCER = 0
_ERROR_BYTES = 512


class MockBrokers:
    """Brokers in this process, from construction to ``close``. Calls take milliseconds.

    Attributes:
        servers: Where they listen.
    """

    def __init__(self, brokers: int) -> None:
        """Start them.

        Raises:
            OSError: They do not start; the message is librdkafka's.
        """
        self._lib = _librdkafka()
        error = ctypes.create_string_buffer(_ERROR_BYTES)
        config = self._lib.rd_kafka_conf_new()
        # The log would go to stderr, over the live view.
        for name, value in ((b"log_level", 0), (b"test.mock.num.brokers", brokers)):
            if self._lib.rd_kafka_conf_set(config, name, b"%d" % value, error, _ERROR_BYTES):
                self._lib.rd_kafka_conf_destroy(config)
                raise OSError(error.value.decode())
        self._handle = self._lib.rd_kafka_new(_PRODUCER, config, error, _ERROR_BYTES)
        if not self._handle:
            self._lib.rd_kafka_conf_destroy(config)
            raise OSError(error.value.decode())
        self._numbers = range(1, brokers + 1)
        self._cluster = self._lib.rd_kafka_handle_mock_cluster(self._handle)
        servers: bytes = self._lib.rd_kafka_mock_cluster_bootstraps(self._cluster)
        self.servers = servers.decode()

    def make_topic(self, name: str, partitions: int) -> None:
        """Make a topic with a replica on every broker.

        Raises:
            OSError: It is not made.
        """
        code = self._lib.rd_kafka_mock_topic_create(
            self._cluster, name.encode(), partitions, len(self._numbers)
        )
        if code:
            raise OSError(f"topic {name} is not made (error {code})")

    def down(self) -> None:
        """Refuse connections and cut the open ones; what the brokers hold stays."""
        for number in self._numbers:
            self._lib.rd_kafka_mock_broker_set_down(self._cluster, number)

    def up(self) -> None:
        """Let the brokers be reached again."""
        for number in self._numbers:
            self._lib.rd_kafka_mock_broker_set_up(self._cluster, number)

    def close(self) -> None:
        """End them and all that they hold. May be called twice."""
        handle, self._handle = self._handle, None
        if handle:
            self._lib.rd_kafka_destroy(handle)


def _librdkafka() -> ctypes.CDLL:
    """The library that confluent-kafka itself has loaded, wherever its wheel keeps it."""
    # A name is looked for in the extension module and then in what it is linked with.
    lib = ctypes.CDLL(cimpl.__file__)
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    try:
        for name, result, arguments in (
            ("rd_kafka_conf_new", pointer, ()),
            ("rd_kafka_conf_set", number, (pointer, text, text, text, ctypes.c_size_t)),
            ("rd_kafka_conf_destroy", None, (pointer,)),
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
