"""docker-compose.yml as it is on disk, and its brokers on addresses of this machine."""

import re
from pathlib import Path
from typing import Any

import yaml

from tests.support.kafka.ports import LOOPBACK, free_ports

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker-compose.yml"

Service = dict[str, Any]


class Compose:
    """The file's content, with variables replaced by their defaults."""

    def __init__(self) -> None:
        text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", FILE.read_text(encoding="utf-8"))
        everything: dict[str, Any] = yaml.safe_load(text)
        self.services: dict[str, Service] = everything["services"]
        self.secrets: dict[str, Path] = {
            name: ROOT / secret["file"] for name, secret in everything["secrets"].items()
        }

    def environment(self, service: str) -> dict[str, str]:
        """A service's environment variables."""
        return dict(self.services[service].get("environment", {}))

    @property
    def brokers(self) -> list[str]:
        """The services that are brokers."""
        return [name for name, one in self.services.items() if "apache/kafka" in one["image"]]

    def published(self, service: str) -> list[tuple[str, str, str]]:
        """Address, host port (or range) and container port of what a service publishes."""
        ports = [port.split(":") for port in self.services[service].get("ports", [])]
        return [(address, outside, inside) for address, outside, inside in ports]

    def bind_mounts(self, service: str) -> list[tuple[Path, str, str]]:
        """A service's mounts from this folder: path here, path there, and options."""
        volumes = [volume.split(":") for volume in self.services[service].get("volumes", [])]
        return [
            (ROOT / volume[0], volume[1], volume[2] if len(volume) > 2 else "")
            for volume in volumes
            if volume[0].startswith(".")
        ]


# For clients and the other brokers, inside of the file's network.
CLIENT_PORT = "9092"


class ComposeSettings:
    """The file's brokers on free ports of this machine; they need not run.

    Args:
        further: How many more ports each broker gets.

    Attributes:
        further: Those, by service.
    """

    def __init__(self, *, further: int = 0) -> None:
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

    def port(self, service: str, port: str = CLIENT_PORT) -> int:
        """Where a port of a service is here."""
        return self._moved[service, port]

    def moved(self, text: str, service: str = "") -> str:
        """Text with every broker address replaced by the one on this machine.

        Args:
            text: Such as a list of servers.
            service: The service of addresses without a name.
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
