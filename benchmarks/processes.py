"""Child processes: started, measured through /proc, and stopped with the benchmark."""

from __future__ import annotations

import http.client
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from demo import die_with_parent

ROOT = Path(__file__).parents[1]
POLL_SECONDS = 0.01
_TICKS = os.sysconf("SC_CLK_TCK")


class CannotMeasure(Exception):
    """A process of the benchmark ended, delivers nothing, or finds no brokers."""


def machine() -> str:
    """The machine and packages, in one line."""
    packages = ", ".join(
        f"{name} {version(name)}" for name in ("faust-streaming", "aiokafka", "aiohttp", "uvloop")
    )
    load = os.getloadavg()[0]
    return (
        f"{os.cpu_count()} cores (load {load:.1f} before), "
        f"Python {platform.python_version()}, {packages}"
    )


def run_benchmark(name: str, run: Callable[[], None]) -> int:
    """Run a command of ``benchmarks``, which prints its result; returns the exit status."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # also ends child processes
    print(machine(), flush=True)
    try:
        run()
    except CannotMeasure as failure:
        print(f"benchmarks.{name}: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


class Child:
    """A process that ends with the ``with`` block, or when the benchmark dies."""

    def __init__(
        self,
        arguments: list[str],
        *,
        program: str = sys.executable,
        environment: Mapping[str, str] | None = None,
        log: Path | None = None,
        folder: Path | None = None,
    ) -> None:
        output = log.open("wb") if log is not None else None
        try:
            self._process = subprocess.Popen(
                [sys.executable, die_with_parent.__file__, str(os.getpid()), program, *arguments],
                stdin=subprocess.PIPE,
                stdout=output or subprocess.PIPE,
                stderr=subprocess.STDOUT if output else None,
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
            )
        finally:
            if output is not None:
                output.close()
        self._log = log
        self._proc = Path("/proc") / str(self._process.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def first_line(self) -> str:
        """The first line it prints: its port or its servers."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline().decode().strip()
        if not line:
            raise CannotMeasure(f"it ended with status {self._process.wait()} before it was ready")
        return line

    def kill(self) -> None:
        """End it at once (SIGKILL)."""
        self._process.kill()
        self._process.wait()

    def check(self) -> None:
        """Raise ``CannotMeasure`` with the end of its log when it has ended."""
        status = self._process.poll()
        if status is not None:
            raise CannotMeasure(f"it ended with status {status}:\n{self.last_words()}")

    def last_words(self, lines: int = 20) -> str:
        """The end of its log."""
        if self._log is None:
            return ""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])

    def cpu_seconds(self) -> float:
        """User and system time of the process and its children, ended ones included."""
        return sum(map(_ticks, _tree(self._process.pid))) / _TICKS

    def rss_mib(self) -> float:
        """Resident memory now."""
        return self._status("VmRSS:")

    def peak_rss_mib(self) -> float:
        """The largest resident memory so far."""
        return self._status("VmHWM:")

    def _status(self, name: str) -> float:
        for line in (self._proc / "status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) / 1024
        raise CannotMeasure(f"/proc has no {name}")


def _tree(pid: int) -> Iterator[int]:
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            pids = children.read_text().split()
        except OSError:  # the thread has ended
            continue
        for child in pids:
            yield from _tree(int(child))


def _ticks(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended; its parent has its time
        return 0
    return sum(map(int, fields[11:15]))


@dataclass(frozen=True, slots=True)
class SinkCounts:
    """The sink's counts at a moment of the monotonic clock; see ``benchmarks.sink``."""

    clock: float
    answered: int
    last_answer: float
    arrived: int
    last_arrival: float
    repeated: int
    reordered: int
    overlapping: int


class Sink(Child):
    """``benchmarks.sink`` in a process of its own."""

    def __init__(self, latency_ms: float) -> None:
        super().__init__(["-m", "benchmarks.sink", str(latency_ms)])
        self.port = int(self.first_line())
        self._connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)

    @property
    def url(self) -> str:
        """The URL for POSTs."""
        return f"http://127.0.0.1:{self.port}/logs"

    def counts(self) -> SinkCounts:
        """Fetch its counts."""
        return SinkCounts(**self._get("/"))

    def wait_for(self, arrived: int, subject: Child, quiet_seconds: float) -> SinkCounts:
        """Wait until enough orders have arrived, or none arrives any more.

        Raises:
            CannotMeasure: The subject ended.
        """
        quiet_since, before = time.monotonic(), -1
        while True:
            counts = self.counts()
            if counts.arrived != before:
                before, quiet_since = counts.arrived, time.monotonic()
            if counts.arrived >= arrived or time.monotonic() - quiet_since > quiet_seconds:
                return counts
            subject.check()
            time.sleep(POLL_SECONDS)

    def arrivals(self) -> dict[int, float]:
        """Fetch the first arrival time of each order, by the monotonic clock."""
        return {int(order): at for order, at in self._get("/arrivals").items()}

    def _get(self, path: str) -> dict[str, Any]:
        self._connection.request("GET", path)
        answer: dict[str, Any] = json.load(self._connection.getresponse())
        return answer

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        super().__exit__()
