"""The embedded cluster for tests: the quickstart's mock brokers, in a process of their own.

Memory only, no CreateTopics (topics are made here, or by their first use with four partitions),
no size limits of its own. Brokers can be stopped and started with their data, and be told to
answer with errors. A separate process, so that it can also be frozen or killed.
"""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from tests.support.child import on_leash
from tests.support.stage import Stage, new_stage

BROKERS = 3
PARTITIONS = 3
# A rebalance takes this long less a second, and so does joining a group that lost its last member.
# A worker on a machine that is busy with other tests must not lose its membership.
SESSION_TIMEOUT_MS = 4_000
PRODUCE = 0
"""The api key of Produce requests, for ``refuse``."""
ROOT = Path(__file__).parents[2]


class EmbeddedKafka:
    """Three brokers from construction to ``close``. Calls take milliseconds.

    Args:
        session_timeout_ms: Of the workers on its stages; ``None`` is the product's own, so that
            they stay members while the brokers are down for a while.

    Attributes:
        bootstrap_servers: Where they listen, or refuse to.
    """

    def __init__(self, *, session_timeout_ms: int | None = SESSION_TIMEOUT_MS) -> None:
        self._session_timeout_ms = session_timeout_ms
        self._process = subprocess.Popen(
            on_leash(sys.executable, "-m", "tests.support.embedded_brokers", str(BROKERS)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            start_new_session=True,
            text=True,
        )
        self.bootstrap_servers = str(self._answer())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def stage(self, *, partitions: int = PARTITIONS) -> Stage:
        """Make a test's own topics and group name."""
        stage = new_stage(self.bootstrap_servers, session_timeout_ms=self._session_timeout_ms)
        self.create_topic(stage.topic, partitions)
        self.create_topic(stage.dlq_topic, partitions)
        return stage

    def create_topic(self, name: str, partitions: int = PARTITIONS) -> None:
        """Make a topic."""
        self._tell("make_topic", name, partitions)

    def set_topic_error(self, name: str, code: int) -> None:
        """Answer requests about a topic with an error (a ``KafkaError`` code); 0 ends that."""
        self._tell("topic_error", name, code)

    def first_join_delay(self, milliseconds: int) -> None:
        """Set how long a new group's first member waits for others."""
        self._tell("first_join_delay", milliseconds)

    def down(self, *brokers: int) -> None:
        """Refuse connections to these brokers (all, if none is named) and cut the open ones."""
        for broker in brokers or range(1, BROKERS + 1):
            self._tell("broker_down", broker)

    def up(self, *brokers: int) -> None:
        """Make these brokers (all, if none is named) reachable again, with their data."""
        for broker in brokers or range(1, BROKERS + 1):
            self._tell("broker_up", broker)

    def refuse(self, code: int, count: int, api_key: int = PRODUCE) -> None:
        """Answer the next ``count`` requests of a kind, by any client, with an error."""
        self._tell("refuse", api_key, code, count)

    def freeze(self) -> None:
        """Freeze the brokers: connections stay open, nothing answers."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Resume frozen brokers."""
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Stop the brokers and drop their data. May be called twice."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _tell(self, *command: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        if (result := self._answer()) != 0:
            raise RuntimeError(f"the embedded cluster answered {result!r} to {command}")

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the embedded cluster ended with {self._process.wait()}")
        return json.loads(line)
