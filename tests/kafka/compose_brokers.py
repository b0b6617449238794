"""The brokers of docker-compose.yml as real ones, set up by the image's own code, on other ports.

The image turns KAFKA_… variables into server.properties, and formats the storage, by a class of
Kafka's own jar, kafka.docker.KafkaDockerWrapper. It runs here on the file's variables; only
addresses and the folder for data are others.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.compose import Compose
from tests.support.kafka.broker import DIE_WITH_PARENT, JVM_OPTIONS
from tests.support.kafka.distribution import fetch_jars, java_executable
from tests.support.kafka.ports import LOOPBACK, free_ports
from tests.support.kafka.view import ClusterView
from tests.support.kafka.waiting import wait_until

READY_LIMIT_SECONDS = 120.0
SETUP_LIMIT_SECONDS = 60


class ComposeBrokers:
    """All brokers of the file, running while the block does.

    Attributes:
        view: The cluster, asked by another client.
        properties: What the image makes of the variables, by service.
    """

    def __init__(self, compose: Compose, directory: Path) -> None:
        self.properties: dict[str, dict[str, str]] = {}
        self._compose = compose
        self._directory = directory
        self._jars = f"{fetch_jars()}/*"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        places = [
            (service, port)
            for service in compose.brokers
            for port in re.findall(r"://:(\d+)", compose.environment(service)["KAFKA_LISTENERS"])
        ]
        self._moved = dict(zip(places, free_ports(len(places)), strict=True))
        self.view = ClusterView(
            self.moved(compose.environment("worker")["KAFKA_BOOTSTRAP_SERVERS"])
        )

    def moved(self, text: str, service: str = "") -> str:
        """A text with every address of the brokers replaced by where they are here.

        Args:
            text: Such as a list of servers.
            service: Whose own addresses those without a name are.
        """

        def place(found: re.Match[str]) -> str:
            name = found[1] if found[1] in self._compose.brokers else service
            return f"{LOOPBACK}:{self._moved[name, found[2]]}"

        names = "|".join([*self._compose.brokers, "localhost", "(?<=//)(?=:)"])
        return re.sub(rf"({names}):(\d+)", place, text)

    def __enter__(self) -> Self:
        for service in self._compose.brokers:
            self._set_up(service)
        for service in self._compose.brokers:
            self._start(service)
        wait_until(self._ready, limit=READY_LIMIT_SECONDS, what="the brokers of the file ready")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.view.close()
        for service in self._processes:
            self.kill(service)

    def kill(self, service: str) -> None:
        """End a broker at once; may be called again."""
        self._processes[service].kill()
        self._processes[service].wait()

    def healthy(self, service: str) -> bool:
        """Whether the health check of the file passes, at the place where the broker is here."""
        _, *command = self._compose.services[service]["healthcheck"]["test"]
        check = re.sub(
            r"/127\.0\.0\.1/(\d+)",
            lambda found: f"/{LOOPBACK}/{self._moved[service, found[1]]}",
            command[-1],
        )
        done = subprocess.run([*command[:-1], check], capture_output=True, check=False)
        return done.returncode == 0

    def _folder(self, service: str) -> Path:
        return self._directory / service

    def _set_up(self, service: str) -> None:
        """What the image does before each start."""
        folder = self._folder(service)
        for name in ("default", "mounted", "final"):
            (folder / name).mkdir(parents=True)
            # The image has defaults, which the variables replace, all of them.
            (folder / name / "server.properties").touch()
        environment = {
            name: self.moved(value, service)
            for name, value in self._compose.environment(service).items()
        }
        environment["KAFKA_LOG_DIRS"] = str(folder / "data")
        folders = [
            f"--{name}-configs-dir={folder / name}" for name in ("default", "mounted", "final")
        ]
        done = subprocess.run(
            [self._java, "-cp", self._jars, "kafka.docker.KafkaDockerWrapper", "setup", *folders],
            env={"PATH": os.environ["PATH"], **environment},
            capture_output=True,
            text=True,
            timeout=SETUP_LIMIT_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        text = (folder / "final" / "server.properties").read_text(encoding="utf-8")
        lines = (line.partition("=") for line in text.splitlines() if line)
        self.properties[service] = {name: value for name, _, value in lines}

    def _start(self, service: str) -> None:
        heap = self._compose.environment(service)["KAFKA_HEAP_OPTS"].split()
        guard = [sys.executable, "-I", "-S", str(DIE_WITH_PARENT), str(os.getpid())]
        config = str(self._folder(service) / "final" / "server.properties")
        with (self._folder(service) / "log").open("wb") as log:
            self._processes[service] = subprocess.Popen(
                [*guard, self._java, *heap, *JVM_OPTIONS, "-cp", self._jars, "kafka.Kafka", config],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def _java(self) -> str:
        return str(java_executable())

    def _ready(self) -> bool:
        for service, process in self._processes.items():
            log = self._folder(service) / "log"
            assert process.poll() is None, log.read_text(encoding="utf-8")[-3000:]
        return len(self.view.brokers()) == len(self._compose.brokers)
