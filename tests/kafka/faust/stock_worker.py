"""A stock Faust worker as a process, `python -m faust -A MODULE worker`, and its journal."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.kafka.faust.findings import stock
from tests.support.child import on_leash
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[3]
# On two busy cores a worker needs many seconds to import Faust and join its group.
LIMIT_SECONDS = 90


@dataclass(frozen=True, slots=True)
class Note:
    """One line of a worker's journal; `at` is comparable between processes."""

    what: str
    at: int
    partition: int = -1
    offset: int = -1
    key: str | None = None


class FaustWorker:
    """A worker of one of the apps in tests/kafka/faust/findings.

    It dies with the thread that created it: create it in the test's thread.

    Args:
        module: The app's module in that package.
        name: Unique among the workers of one test.
        directory: For its journal, log and data.
        bootstrap_servers: Of the cluster.
        group: The Faust app's id, and so its consumer group.
        topic: What it consumes.
        environment: Further variables for the app.
    """

    def __init__(
        self,
        module: str,
        *,
        name: str,
        directory: Path,
        bootstrap_servers: str,
        group: str,
        topic: str,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self._journal = directory / f"{name}.journal"
        self._journal_read = 0
        self._notes: list[Note] = []
        self._log = directory / f"{name}.log"
        command = ["-m", "faust", "-A", f"tests.kafka.faust.findings.{module}"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                on_leash(sys.executable, *command, "worker", "--without-web", "-l", "info"),
                cwd=ROOT,
                env={
                    **os.environ,
                    stock.BROKERS: bootstrap_servers,
                    stock.GROUP: group,
                    stock.TOPIC: topic,
                    stock.JOURNAL: str(self._journal),
                    stock.DATA: str(directory / f"{name}-data"),
                    **(environment or {}),
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def notes(self) -> list[Note]:
        """The journal so far."""
        if self._journal.exists():
            with self._journal.open("rb") as journal:
                journal.seek(self._journal_read)
                whole, newline, _ = journal.read().rpartition(b"\n")
            self._journal_read += len(whole) + len(newline)
            self._notes += [Note(**json.loads(line)) for line in whole.splitlines()]
        return list(self._notes)

    def noted(self, what: str) -> list[Note]:
        """The notes of one kind so far."""
        return [note for note in self.notes if note.what == what]

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until a condition holds, failing early when the worker ends before.

        Raises:
            TimeoutError: It did not hold in time; the text has the end of the worker's log.
            RuntimeError: The worker ended before it did.
        """

        def holds() -> bool:
            # In this order, so that the worker's last actions count.
            alive = self._process.poll() is None
            if condition():
                return True
            if not alive:
                raise RuntimeError(f"{self.name} ended before {what}:\n{self.last_words()}")
            return False

        try:
            wait_until(holds, limit=LIMIT_SECONDS, what=what)
        except TimeoutError as late:
            raise TimeoutError(f"{late}\n{self.last_words()}") from None

    def wait_for_end(self) -> int:
        """Wait until the process has ended; return its status, negative for a signal.

        Raises:
            TimeoutError: It did not end.
        """
        try:
            return self._process.wait(LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{self.name} did not end:\n{self.last_words()}") from None

    def terminate(self) -> None:
        """Ask it to stop (SIGTERM)."""
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once (SIGKILL); does no harm when it has ended."""
        self._process.kill()
        self._process.wait()

    def last_words(self, lines: int = 40) -> str:
        """The end of its log."""
        text = self._log.read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-lines:])
