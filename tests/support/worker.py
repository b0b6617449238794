"""The real worker, ``faust -A app worker -l info``, as a process of its own.

On Linux it is a fork of a process that has imported the libraries already (``fork_server.py``), a
second of processor time less. ``in_new_interpreter`` starts it as a user does; so do limits and
redirections.

    async with WorkerProcess(tmp_path, stage, sink.url, max_in_flight=10) as worker:
        await worker.wait_ready()
        ...
        worker.sigterm()
        assert await worker.wait() == 0

Its working directory is the test's, not the project's; its environment is only what is set here.
The process ends with the test, however that ends.
"""

import inspect
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support import forks
from tests.support.child import on_leash
from tests.support.http_request import ask
from tests.support.kafka.ports import LOOPBACK, free_ports
from tests.support.stage import Stage
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]
COMMAND = ("-m", "faust", "-A", "app", "worker", "-l", "info")
# On two busy cores a worker needs many seconds to import Faust and join its group.
LIMIT_SECONDS = 90.0
QUICK = {
    "CONSUMER_RETRY_INITIAL_INTERVAL_MS": "50", "CONSUMER_RETRY_MAX_INTERVAL_MS": "200",
    "BREAKER_PROBE_INTERVAL_SECONDS": "0.2", "EXTERNAL_LOGGER_TIMEOUT_SECONDS": "10",
    "SHUTDOWN_GRACE_SECONDS": "10",
}  # fmt: skip
"""Shorter waits than the product's own, so that tests are quick."""


def consumers_in(folder: Path, name: str, source: str) -> Path:
    """Write a file of consumers into a new folder, for CONSUMER_FOLDERS; returns that folder."""
    made = folder / "consumers"
    made.mkdir()
    (made / name).write_text(source, encoding="utf-8")
    return made


def attempts(metrics: Mapping[str, float], result: str) -> float:
    """Attempts with this result, of whatever status, from what ``WorkerProcess.metrics`` gave."""
    beginning = f'order_relay_delivery_attempts_total{{result="{result}",'
    return sum(value for name, value in metrics.items() if name.startswith(beginning))


class WorkerProcess:
    """A worker; made, not started. May be started again after its end, on the same web port.

    Args:
        directory: Its working directory, made if missing, and where its log goes.
        stage: Its Kafka, topics and group.
        logger_url: EXTERNAL_LOGGER_URL.
        name: Tells workers of one test apart.
        settings: Further settings, or others, by their names in lower case; ``None`` leaves one
            to the product's default.
    """

    def __init__(
        self,
        directory: Path,
        stage: Stage,
        logger_url: str,
        *,
        name: str = "worker",
        **settings: object,
    ) -> None:
        directory.mkdir(exist_ok=True)
        self.name = name
        self.web_port = free_ports(1)[0]
        self.log = directory / f"{name}.log"
        self._directory = directory
        self._limited: tuple[str, ...] = ()
        self._pipe = False
        self._forked = forks.POSSIBLE
        self._process: subprocess.Popen[bytes] | forks.ForkedProcess | None = None
        given = {
            "KAFKA_SESSION_TIMEOUT_MS": stage.session_timeout_ms, "EXTERNAL_LOGGER_URL": logger_url,
            "WEB_PORT": self.web_port, **QUICK,
            **{key.upper(): value for key, value in (stage.names | settings).items()},
        }  # fmt: skip
        self.environment = {
            "PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1",
            **{key: str(value) for key, value in given.items() if value is not None},
        }  # fmt: skip

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.kill9()

    def in_new_interpreter(self) -> Self:
        """Start it in a new interpreter."""
        self._forked = False
        return self

    def limit_file_descriptors(self, soft: int, hard: int) -> Self:
        """Start it with these limits instead of those of the test run."""
        script = f'ulimit -Sn {soft} && ulimit -Hn {hard} && exec "$@"'
        self._limited = ("/bin/sh", "-c", script, self.name)
        return self

    def redirect(self, streams: str) -> Self:
        """Start it with these redirections of a shell, such as ``<&- >/dev/full``."""
        self._limited = ("/bin/sh", "-c", f'exec "$@" {streams}', self.name)
        return self

    def log_into_pipe(self) -> Self:
        """Let its log go into a pipe that is not read before ``read_log``."""
        self._pipe = True
        return self

    # --- its life -------------------------------------------------------------------------------

    def start(self) -> Self:
        """Start it; does not wait. Its log goes on where an earlier start left off."""
        if self.running:
            raise RuntimeError(f"{self.name} runs already")
        if self._forked and not self._limited and not self._pipe:
            streams = Path(os.devnull), self.log, self.log
            self._process = forks.ForkedProcess(
                COMMAND[1:], self._directory, self.environment, *streams
            )
            return self
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                on_leash(*self._limited, sys.executable, *COMMAND),
                cwd=self._directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if self._pipe else log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in the terminal is for the test run
            )
        return self

    @property
    def running(self) -> bool:
        """Whether the process exists, frozen or not."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Its exit status, negative for a signal; ``None`` while it runs."""
        return self._process.poll() if self._process is not None else None

    def sigterm(self) -> None:
        """Ask it to stop."""
        self._signal(signal.SIGTERM)

    def kill9(self) -> None:
        """End it at once, frozen or not. Does nothing when it has ended."""
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._signal(number)

    def read_log(self) -> None:
        """Read the pipe of ``log_into_pipe`` from now on."""
        assert self._process is not None
        pipe = self._process.stdout
        assert pipe is not None

        def read() -> None:
            with pipe, self.log.open("ab", buffering=0) as log:
                while chunk := os.read(pipe.fileno(), 65536):
                    log.write(chunk)

        threading.Thread(target=read, daemon=True).start()

    def freeze(self) -> None:
        """Freeze it (SIGSTOP)."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Resume it after ``freeze``."""
        self._signal(signal.SIGCONT)

    async def wait(self, timeout: float = LIMIT_SECONDS) -> int:
        """Wait until it has ended; return its exit status, negative for a signal.

        Raises:
            TimeoutError: It did not end; the text has the end of its log.
        """
        await eventually(lambda: not self.running, timeout, self._still("to end"))
        assert self.exit_code is not None
        if self.exit_code:
            # Shown with a test that did not expect it.
            print(f"{self.name} ended with {self.exit_code}; its log ends:\n{self.last_words(80)}")
        return self.exit_code

    async def stop(self, timeout: float = LIMIT_SECONDS) -> int:
        """Ask it to stop, and wait for its end."""
        self.sigterm()
        return await self.wait(timeout)

    # --- what it says ---------------------------------------------------------------------------

    async def wait_ready(self, timeout: float = LIMIT_SECONDS) -> None:
        """Wait until ``/health/ready`` says yes: partitions assigned, producer connected.

        Raises:
            TimeoutError: It did not in time, or the process ended.
        """
        await self.wait_until(self.ready, timeout, "to be ready")

    async def wait_until(
        self, condition: Callable[[], object], timeout: float = LIMIT_SECONDS, what: str = ""
    ) -> None:
        """Wait for a condition, as ``eventually`` does, and no longer than the worker runs.

        Raises:
            TimeoutError: It did not hold in time; the text has the end of the log.
            RuntimeError: The worker ended before it held.
        """

        async def holds() -> bool:
            # In this order: what the worker did before it ended counts.
            alive = self.running
            answer = condition()
            if await answer if inspect.isawaitable(answer) else answer:
                return True
            if not alive:
                raise RuntimeError(f"{self.name} ended with {self.exit_code}:\n{self.last_words()}")
            return False

        await eventually(holds, timeout, self._still(what))

    async def wait_metric(
        self, name: str, holds: Callable[[float], bool], timeout: float = LIMIT_SECONDS
    ) -> None:
        """Wait until a metric, 0 while it is missing, has such a value."""

        async def has_it() -> bool:
            return holds((await self.metrics()).get(name, 0))

        await self.wait_until(has_it, timeout, f"to show {name}")

    async def wait_log(self, phrase: str, timeout: float = LIMIT_SECONDS) -> None:
        """Wait until its log has a phrase."""
        await self.wait_until(lambda: phrase in self.log_text(), timeout, f"to log {phrase!r}")

    async def ready(self) -> bool:
        """Whether ``/health/ready`` says yes now."""
        answer = await self.get("/health/ready")
        return answer is not None and answer[0] == 200

    async def live(self) -> bool:
        """Whether ``/health/live`` says yes now."""
        answer = await self.get("/health/live")
        return answer is not None and answer[0] == 200

    async def get(self, path: str) -> tuple[int, str] | None:
        """GET from its web server: status and body; ``None`` when it does not answer."""
        try:
            answer = await ask(f"http://{LOOPBACK}:{self.web_port}{path}", limit=5)
        except (aiohttp.ClientError, TimeoutError):
            return None
        return answer.status, answer.text

    async def json(self, path: str) -> Any:
        """GET a page, which must be JSON with the status 200."""
        answer = await self.get(path)
        assert answer is not None, path
        assert answer[0] == 200, answer
        return json.loads(answer[1], parse_constant=pytest.fail)

    async def post_order(self, data: Any, **headers: str) -> tuple[int, dict[str, Any]]:
        """POST to its ``/order-paid``: status and answer; in names "_" is "-"."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        given |= {"Content-Type": "application/json"}
        url = f"http://{LOOPBACK}:{self.web_port}/order-paid"
        answer = await ask(url, "POST", data=data, headers=given)
        return answer.status, answer.json

    async def metrics(self, consumer: str = "order_logging") -> dict[str, float]:
        """Its metrics now, by name and sorted labels as Prometheus writes them.

        Such as ``order_relay_deliveries_total{outcome="delivered"}``; empty when it does not
        answer. Of consumers only this one's, without the label ``consumer``.
        """
        answer = await self.get("/metrics")
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(answer[1] if answer is not None else ""):
            for sample in family.samples:
                given = dict(sample.labels)
                if given.pop("consumer", consumer) != consumer:
                    continue
                labels = ",".join(f'{k}="{v}"' for k, v in sorted(given.items()))
                found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
        return found

    def log_text(self) -> str:
        """Everything it has printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def log_lines(self, phrase: str) -> list[str]:
        """The lines of its log that have a phrase."""
        return [line for line in self.log_text().splitlines() if phrase in line]

    def last_words(self, lines: int = 30) -> str:
        """The end of its log, for an error message."""
        return "\n".join(self.log_text().splitlines()[-lines:])

    def _still(self, what: str) -> Callable[[], str]:
        return lambda: f"{self.name} {what}; its log ends:\n{self.last_words()}"

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)


NewWorker = Callable[..., WorkerProcess]
"""Makes a worker of the test's folder, topics and sink, with further settings."""
