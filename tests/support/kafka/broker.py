"""One combined broker and controller: its properties, its storage, its JVM."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.child import on_leash
from tests.support.kafka.ports import LOOPBACK

TERM_LIMIT_SECONDS = 15
FORMAT_LIMIT_SECONDS = 60
BROKER_NICENESS = -5
MAX_METADATA_BYTES = 1000

# A quick start matters more than peak speed: no second compiler, no parallel collector.
JVM_OPTIONS = (
    "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData", "-Djava.awt.headless=true",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS",
)  # fmt: skip

# In addition to docker-compose.yml.
PROPERTIES: Mapping[str, str] = {
    # Few partitions of internal topics: they are created, and get a new leader, quickly.
    "offsets.topic.num.partitions": "3",
    "transaction.state.log.num.partitions": "3",
    "share.coordinator.state.topic.replication.factor": "3",
    "share.coordinator.state.topic.min.isr": "2",
    "share.coordinator.state.topic.num.partitions": "3",
    # A dead or frozen broker is fenced after 3 s without a heartbeat instead of 9, and its
    # partitions get a new leader then.
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    # Saved high watermarks are what is left when all brokers were killed; every 5 s by default.
    "replica.high.watermark.checkpoint.interval.ms": "1000",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    # The default, 4,096, is more than a worker writes: it must work with less.
    "offset.metadata.max.bytes": str(MAX_METADATA_BYTES),
    # The default is 128 MB, half of the heap.
    "log.cleaner.dedupe.buffer.size": "4194304",
    "num.network.threads": "2",
    "num.io.threads": "4",
    "background.threads": "2",
}


@dataclass(frozen=True, slots=True)
class Listener:
    """A further way to reach the brokers.

    Attributes:
        protocol: ``SSL``, ``SASL_PLAINTEXT`` or ``SASL_SSL``.
        properties: Server properties of this listener alone, without its prefix.
    """

    protocol: str
    properties: Mapping[str, str]


class Broker:
    """A broker's process, which may be running, frozen or dead, and its storage, which stays.

    Args:
        broker_id: Its node id, from 1.
        port: Where clients and the other brokers reach it.
        settings: Its properties by docker-compose.yml.
        directory: For its properties, data and log; must exist and be empty.
        java: The command that starts a JVM, with all of its options and the class path.
        properties: Further server properties; they go before those above.
        listeners: Further listeners with their ports, by name.
        spawn: Starts a process. The kernel kills what it started when the thread that started it
            ends, so this must run in a thread that outlives the broker.
    """

    def __init__(
        self,
        broker_id: int,
        port: int,
        *,
        settings: Mapping[str, str],
        directory: Path,
        java: Sequence[str],
        properties: Mapping[str, str],
        listeners: Mapping[str, tuple[int, Listener]],
        spawn: Callable[[Callable[[], subprocess.Popen[bytes]]], subprocess.Popen[bytes]],
    ) -> None:
        self.id = broker_id
        self.port = port
        self.ports = {name: at for name, (at, _) in listeners.items()}
        self.log = directory / "broker.log"
        self._java = list(java)
        self._spawn = spawn
        self._process: subprocess.Popen[bytes] | None = None
        self._frozen = False
        self._properties_file = directory / "server.properties"
        further = {
            "listeners": [f"{name}://{LOOPBACK}:{at}" for name, at in self.ports.items()],
            "listener.security.protocol.map": [
                f"{name}:{one.protocol}" for name, (_, one) in listeners.items()
            ],
        }
        further["advertised.listeners"] = further["listeners"]
        everything = {
            **settings,
            **{name: ",".join([settings[name], *more]) for name, more in further.items()},
            "log.dirs": str(directory / "data"),
            **PROPERTIES,
            **properties,
            **{
                f"listener.name.{name.lower()}.{key}": value
                for name, (_, one) in listeners.items()
                for key, value in one.properties.items()
            },
        }
        lines = [f"{name}={value}\n" for name, value in everything.items()]
        self._properties_file.write_text("".join(lines), encoding="utf-8")

    @property
    def running(self) -> bool:
        """Whether its process exists, frozen or not."""
        return self._process is not None and self._process.poll() is None

    @property
    def frozen(self) -> bool:
        """Whether it was frozen and not yet thawed."""
        return self.running and self._frozen

    def format(self, cluster_id: str, scram_users: Mapping[str, str]) -> None:
        """Make its storage ready for a cluster, once, before the first start.

        ``scram_users`` may log in by SCRAM; they are the cluster's, and their passwords by name.
        """
        command = ["kafka.tools.StorageTool", "format", "-t", cluster_id]
        for name, password in scram_users.items():
            for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512"):
                command += ["--add-scram", f"{mechanism}=[name={name},password={password}]"]
        done = subprocess.run(
            [*self._java, *command, "-c", str(self._properties_file)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=FORMAT_LIMIT_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"cannot format storage of broker {self.id}: {done.stderr.strip()}")

    def launch(self) -> None:
        """Start the JVM if there is none; does not wait until it serves."""
        if not self.running:
            self._process = self._spawn(self._popen)
            self._frozen = False

    def terminate(self) -> None:
        """Ask it to shut down cleanly (SIGTERM); see `join`."""
        self.thaw()
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once (SIGKILL), frozen or not."""
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def join(self) -> None:
        """Wait until a terminated process has ended; kill it if it does not end in time.

        The last brokers of a stopping cluster have no controller quorum left to deregister from,
        and would wait minutes for one.
        """
        if self._process is not None:
            try:
                self._process.wait(TERM_LIMIT_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()

    def freeze(self) -> None:
        """Freeze it (SIGSTOP): its connections stay open, and nothing answers."""
        if self.running:
            self._signal(signal.SIGSTOP)
            self._frozen = True

    def thaw(self) -> None:
        """Resume a frozen process (SIGCONT)."""
        if self._frozen:
            self._signal(signal.SIGCONT)
            self._frozen = False

    def last_words(self, lines: int = 5) -> str:
        """The end of its log, for an error message."""
        if not self.log.exists():
            return "(no log)"
        return "\n".join(
            self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
        )

    def _popen(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                on_leash(*self._java, "kafka.Kafka", str(self._properties_file)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in the terminal is for us; we stop the brokers
            )
        # On a machine that is busy with tests, brokers have priority: no test is about a broker
        # without a processor. Only root may set it.
        with contextlib.suppress(PermissionError, ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, process.pid, BROKER_NICENESS)
        return process

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
