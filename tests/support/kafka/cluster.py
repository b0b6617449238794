"""A real Apache Kafka cluster for tests: three KRaft brokers on loopback, and their faults.

    with RealKafka() as kafka:
        kafka.create_topic("orders", partitions=3)
        kafka.kill(kafka.leader_of("orders", 0))
        ...
        kafka.revive()

Every method blocks its thread, some for seconds, and may be called from any thread: a coroutine
calls `await asyncio.to_thread(kafka.revive, 2)`. No JVM outlives the process that started it,
however that ends (on Linux; elsewhere only a SIGKILL of that process leaves them).
"""

import atexit
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.support.compose import ComposeSettings
from tests.support.kafka.broker import JVM_OPTIONS, Broker, Listener
from tests.support.kafka.distribution import fetch_jars, java_executable
from tests.support.kafka.ports import LOOPBACK
from tests.support.kafka.view import ClusterView
from tests.support.waiting import wait_until

BROKERS = 3
QUORUM = 2
READY_LIMIT_SECONDS = 120.0


class RealKafka(ClusterView):
    """Three combined brokers and controllers, ids 1 to 3, in a temporary directory of their own.

    They are those of docker-compose.yml, on other ports and with more listeners: replication is 3,
    min.insync.replicas 2, topics are made only by `create_topic` or a client's CreateTopics. Data
    survives killed brokers; `close` deletes it.

    Args:
        properties: Further server properties for every broker, or others in place of the
            harness's own (see `tests.support.kafka.broker.PROPERTIES`).
        jvm_options: JVM options in place of those for a quick start.
        listeners: Further listeners, such as one with TLS, by name in capitals.
        scram_users: Who may log in by SCRAM where a listener allows it, and their passwords.
    """

    def __init__(
        self,
        *,
        properties: Mapping[str, str] | None = None,
        jvm_options: Sequence[str] = JVM_OPTIONS,
        listeners: Mapping[str, Listener] | None = None,
        scram_users: Mapping[str, str] | None = None,
    ) -> None:
        self._properties = dict(properties or {})
        self._listeners = dict(listeners or {})
        self._scram_users = dict(scram_users or {})
        self._jvm_options = list(jvm_options)
        self._brokers: dict[int, Broker] = {}
        self._wanted: set[int] = set()
        self._directory: Path | None = None
        self._compose: ComposeSettings | None = None
        # The kernel kills a broker when the thread that started it ends, so it is always this one.
        self._spawner = ThreadPoolExecutor(1, thread_name_prefix="kafka-spawner")
        self._lock = threading.RLock()

    def __enter__(self) -> "RealKafka":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def bootstrap_servers(self) -> str:
        """`host:port` of all three, separated by commas, whether they run or not."""
        return ",".join(f"{LOOPBACK}:{broker.port}" for broker in self._brokers.values())

    def servers(self, listener: str) -> str:
        """The same for one of the further listeners."""
        return ",".join(f"{LOOPBACK}:{one.ports[listener]}" for one in self._brokers.values())

    @property
    def compose(self) -> ComposeSettings:
        """What docker-compose.yml says about the brokers, and where they are."""
        assert self._compose is not None, "the cluster was not started"
        return self._compose

    @property
    def broker_ids(self) -> tuple[int, ...]:
        """The ids of the brokers."""
        return tuple(self._brokers)

    @property
    def running(self) -> frozenset[int]:
        """Ids of the brokers whose process runs and is not frozen."""
        return frozenset(b.id for b in self._brokers.values() if b.running and not b.frozen)

    def start(self, broker_id: int | None = None) -> None:
        """Start a broker, or all that do not run, and wait until they serve.

        The first start fetches Kafka if needed and makes the cluster. A single broker, which has
        no quorum, is only launched, not waited for.

        Raises:
            KafkaUnavailable: Java or Maven is missing, or Kafka could not be fetched.
            TimeoutError: The cluster is not ready within two minutes.
            RuntimeError: A broker ended by itself.
        """
        with self._lock:
            new = not self._brokers
            if new:
                self._make_cluster()
            for broker in self._chosen(broker_id):
                self._wanted.add(broker.id)
                broker.launch()
            if len(self.running) >= QUORUM:
                self.wait_until_ready()
            if new:
                self.create_offsets_topic()  # so that no test waits for it
                self.wait_until_ready()

    def stop(self, broker_id: int | None = None) -> None:
        """Shut down a broker, or all, cleanly (SIGTERM); their data stays."""
        with self._lock:
            chosen = self._chosen(broker_id)
            self._wanted -= {broker.id for broker in chosen}
            for broker in chosen:
                broker.terminate()
            for broker in chosen:
                broker.join()

    def kill(self, broker_id: int | None = None) -> None:
        """End a broker, or all, at once (SIGKILL); what they had written stays."""
        with self._lock:
            for broker in self._chosen(broker_id):
                self._wanted.discard(broker.id)
                broker.kill()

    def freeze(self, broker_id: int) -> None:
        """Freeze a broker (SIGSTOP): its connections stay open, nothing answers."""
        with self._lock:
            for broker in self._chosen(broker_id):
                broker.freeze()

    def revive(self, broker_id: int | None = None) -> None:
        """Thaw a frozen broker, start a dead one, or do so with all; wait until they are back.

        Back means registered and in sync for every partition they hold. Costs one request if
        nothing was dead or frozen.
        """
        with self._lock:
            for broker in self._chosen(broker_id):
                broker.thaw()
            self.start(broker_id)

    def close(self) -> None:
        """End everything at once and remove the data; more than one call does no harm."""
        with self._lock:
            self.kill()
            self._spawner.shutdown()
            if self._directory is not None:
                shutil.rmtree(self._directory, ignore_errors=True)
                self._directory = None
            atexit.unregister(self.close)

    def wait_until_ready(self, limit: float = READY_LIMIT_SECONDS) -> None:
        """Wait until the brokers that run unfrozen serve everything.

        Each is registered and in sync for all partitions it holds, and every partition is led by
        one of them.

        Raises:
            TimeoutError: They are not ready within `limit` seconds.
            RuntimeError: A broker ended by itself; the text has the end of its log.
        """
        missing: list[str] = []

        def ready() -> bool:
            missing[:] = self._missing()
            return not missing

        try:
            wait_until(ready, limit=limit, what="brokers ready")
        except TimeoutError as late:
            raise TimeoutError(f"{late}: {'; '.join(missing[:5])}") from None

    def _chosen(self, broker_id: int | None) -> list[Broker]:
        if broker_id is None:
            return list(self._brokers.values())
        if broker_id not in self._brokers:
            raise ValueError(f"no broker {broker_id}; there are {list(self._brokers)}")
        return [self._brokers[broker_id]]

    def _make_cluster(self) -> None:
        jars = fetch_jars()
        compose = self._compose = ComposeSettings(further=len(self._listeners))
        java = [str(java_executable()), *compose.heap, *self._jvm_options, "-cp", f"{jars}/*"]
        self._directory = Path(tempfile.mkdtemp(prefix="order-relay-kafka-"))
        atexit.register(self.close)
        for broker_id, service in enumerate(compose.services, start=1):
            directory = self._directory / f"broker-{broker_id}"
            directory.mkdir()
            self._brokers[broker_id] = Broker(
                broker_id,
                compose.port(service),
                settings=compose.properties(service),
                directory=directory,
                java=java,
                properties=self._properties,
                listeners={
                    name: (port, one)
                    for port, (name, one) in zip(
                        compose.further[service], self._listeners.items(), strict=True
                    )
                },
                spawn=self._spawn,
            )
        cluster_id = compose.cluster_id(compose.services[0])
        with ThreadPoolExecutor(BROKERS) as pool:
            for done in [
                pool.submit(one.format, cluster_id, self._scram_users)
                for one in self._brokers.values()
            ]:
                done.result()
        self.connect(self.bootstrap_servers)

    def _spawn(self, popen: Callable[[], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
        return self._spawner.submit(popen).result()

    def _missing(self) -> list[str]:
        """What the cluster lacks to be ready, one sentence each."""
        for broker in self._brokers.values():
            if broker.id in self._wanted and not broker.running:
                raise RuntimeError(f"broker {broker.id} ended by itself: {broker.last_words()}")
        running = self.running
        registered = self.brokers()
        missing = [f"broker {broker_id} not registered" for broker_id in running - registered]
        partitions = self.partitions()
        if partitions is None:
            return [*missing, "no broker answers"]
        for state in partitions:
            if state.leader not in running:
                missing.append(f"{state.topic}-{state.partition} has no leader")
            elif behind := (state.replicas & running) - state.in_sync:
                missing.append(f"{state.topic}-{state.partition} not in sync on {sorted(behind)}")
        return missing
