"""docker-compose.yml as it is on disk, with its anchors resolved."""

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker-compose.yml"

Service = dict[str, Any]


class Compose:
    """What the file says, variables being replaced by the defaults that it names."""

    def __init__(self) -> None:
        text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", FILE.read_text(encoding="utf-8"))
        everything: dict[str, Any] = yaml.safe_load(text)
        self.services: dict[str, Service] = everything["services"]
        self.volumes: dict[str, Any] = everything["volumes"]
        self.secrets: dict[str, Path] = {
            name: ROOT / secret["file"] for name, secret in everything["secrets"].items()
        }

    def environment(self, service: str) -> dict[str, str]:
        """What a service's containers get, by name."""
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
        """What a service mounts from this folder: the path here, the one there, the options."""
        volumes = [volume.split(":") for volume in self.services[service].get("volumes", [])]
        return [
            (ROOT / volume[0], volume[1], volume[2] if len(volume) > 2 else "")
            for volume in volumes
            if volume[0].startswith(".")
        ]
