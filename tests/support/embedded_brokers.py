"""The embedded cluster's process: it prints its brokers' addresses, then executes commands.

Each line on stdin is a JSON list: a command and its arguments. The answer is a line of JSON: 0
or the error. It ends with its stdin.
"""

import ctypes
import json
import sys
from typing import Any

from demo.kafka import EmbeddedCluster

# librdkafka's default is 3 s; a single worker has no other to wait for.
FIRST_JOIN_DELAY_MS = 100


class ScriptedBrokers(EmbeddedCluster):
    """The quickstart's brokers, with faults for tests: errors, and one broker down."""

    def __init__(self, brokers: int) -> None:
        super().__init__(brokers=brokers)
        pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
        for name, arguments in (
            ("group_initial_rebalance_delay_ms", (pointer, ctypes.c_int32)),
            ("topic_set_error", (pointer, text, number)),
            (
                "push_request_errors_array",
                (pointer, ctypes.c_int16, ctypes.c_size_t, ctypes.POINTER(number)),
            ),
        ):
            function = getattr(self._lib, f"rd_kafka_mock_{name}")
            function.restype, function.argtypes = None, arguments
        self.first_join_delay(FIRST_JOIN_DELAY_MS)

    def first_join_delay(self, milliseconds: int) -> None:
        """Set how long a new group's first member waits for others."""
        self._lib.rd_kafka_mock_group_initial_rebalance_delay_ms(self._cluster, milliseconds)

    def topic_error(self, name: str, code: int) -> None:
        """Answer requests about a topic with an error; 0 ends that."""
        self._lib.rd_kafka_mock_topic_set_error(self._cluster, name.encode(), code)

    def broker_down(self, number: int) -> None:
        """Refuse connections to a broker and cut the open ones; its data stays."""
        self._lib.rd_kafka_mock_broker_set_down(self._cluster, number)

    def broker_up(self, number: int) -> None:
        """Make a broker reachable again."""
        self._lib.rd_kafka_mock_broker_set_up(self._cluster, number)

    def refuse(self, api_key: int, code: int, count: int) -> None:
        """Answer the next requests of a kind with an error."""
        errors = (ctypes.c_int * count)(*[code] * count)
        self._lib.rd_kafka_mock_push_request_errors_array(self._cluster, api_key, count, errors)


COMMANDS = {"broker_down", "broker_up", "first_join_delay", "make_topic", "refuse", "topic_error"}


def main() -> None:
    """Run the cluster until stdin ends."""
    brokers = ScriptedBrokers(int(sys.argv[1]))
    print(json.dumps(brokers.servers), flush=True)
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        result: Any = "unknown command"
        if command in COMMANDS:
            try:
                result = getattr(brokers, command)(*arguments) or 0
            except OSError as error:
                result = str(error)
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
