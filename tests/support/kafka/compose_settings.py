"""What docker-compose.yml says about its brokers, with every address where it is here."""

import re
from collections.abc import Sequence

from tests.support.compose import Compose
from tests.support.kafka.ports import LOOPBACK, free_ports

# For clients and the other brokers, inside of the file's network.
CLIENT_PORT = "9092"


class ComposeSettings:
    """The file's brokers on free ports of this machine; they need not run.

    Args:
        client_ports: Where clients reach them; free ones by default.
        further: How many more ports each broker shall have.

    Attributes:
        further: Those, by service.
    """

    def __init__(self, client_ports: Sequence[int] | None = None, *, further: int = 0) -> None:
        self._compose = Compose()
        places = [
            (service, port)
            for service in self._compose.brokers
            for port in re.findall(r"://:(\d+)", self._listeners(service))
        ]
        services = self._compose.brokers
        free = iter(free_ports(len(places) + further * len(services), for_brokers=True))
        self._moved = {place: next(free) for place in places}
        self.further = {service: [next(free) for _ in range(further)] for service in services}
        for service, given in zip(self._compose.brokers, client_ports or (), strict=False):
            self._moved[service, CLIENT_PORT] = given

    def port(self, service: str, port: str = CLIENT_PORT) -> int:
        """Where a port of a service is here."""
        return self._moved[service, port]

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

    def environment(self, service: str) -> dict[str, str]:
        """The variables of a broker that are properties."""
        return {
            name: self.moved(value, service)
            for name, value in self._compose.environment(service).items()
            if name.startswith("KAFKA_") and name != "KAFKA_HEAP_OPTS"
        }

    def properties(self, service: str) -> dict[str, str]:
        """The same as properties, named as Kafka's image does it."""
        return {
            name.removeprefix("KAFKA_").replace("_", ".").lower(): value
            for name, value in self.environment(service).items()
        }

    def cluster_id(self, service: str) -> str:
        """The id of the cluster that a broker belongs to."""
        return self._compose.environment(service)["CLUSTER_ID"]

    @property
    def heap(self) -> list[str]:
        """The JVM's options for the heap of every broker."""
        (heap,) = {self._compose.environment(one)["KAFKA_HEAP_OPTS"] for one in self.services}
        return heap.split()

    @property
    def services(self) -> list[str]:
        """The brokers, in the order of their ids."""
        return self._compose.brokers

    def _listeners(self, service: str) -> str:
        return self._compose.environment(service)["KAFKA_LISTENERS"]
