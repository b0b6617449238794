"""The versions with which the tests of this folder passed last, stored by `make test-faust`.

The tests cover Faust and the harness, not the relay: they run again only when a version changes.

    python -m tests.kafka.faust.versions check    status 1 if one has changed
    python -m tests.kafka.faust.versions write    they passed
"""

import sys
from importlib.metadata import version
from pathlib import Path

from tests.support.kafka.distribution import kafka_version

PACKAGES = ("faust-streaming", "mode-streaming", "aiokafka", "confluent-kafka")
TESTED = Path(__file__).with_name("tested-versions.txt")


def current() -> str:
    """The versions here, a line each."""
    lines = [f"{name} {version(name)}\n" for name in PACKAGES]
    return "".join([*lines, f"Apache Kafka {kafka_version()}\n"])


def main(command: str) -> int:
    """Check or write; return the exit status."""
    if command == "write":
        TESTED.write_text(current(), encoding="ascii")
        return 0
    return 0 if TESTED.exists() and TESTED.read_text(encoding="ascii") == current() else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
