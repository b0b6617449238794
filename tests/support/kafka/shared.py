"""One cluster for all processes of a test run: the first process owns it.

The others connect to it, and get a proxy of ``RealKafka`` whose methods run in the process that
owns the brokers.
"""

import functools
import os
import threading
from collections.abc import Callable
from multiprocessing.managers import BaseManager, BaseProxy
from typing import Any, TypeAlias, cast

from tests.support.kafka.cluster import RealKafka
from tests.support.kafka.ports import LOOPBACK

Address: TypeAlias = tuple[str, int, str]
"""Host, port and key of a ``ClusterServer``."""

_ATTRIBUTE = "__getattribute__"


class _Proxy(BaseProxy):
    """Calls methods of a cluster in its process."""

    _exposed_ = (*(name for name in dir(RealKafka) if not name.startswith("_")), _ATTRIBUTE)


class ClusterServer:
    """Serves a cluster to other processes; it is made at the first request."""

    def __init__(self, make: Callable[[], RealKafka]) -> None:
        self._made: RealKafka | None = None
        self._make = make
        self._lock = threading.Lock()

        class Manager(BaseManager):
            """Serves this cluster."""

        Manager.register("cluster", self._cluster, _Proxy)
        key = os.urandom(16)
        self._server = Manager((LOOPBACK, 0), key).get_server()
        host, port = cast("tuple[str, int]", self._server.address)
        self.address: Address = (host, port, key.hex())
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """End the cluster, if there is one."""
        with self._lock:
            if self._made is not None:
                self._made.close()

    def _cluster(self) -> RealKafka:
        with self._lock:
            if self._made is None:
                self._made = self._make()
            return self._made

    def _serve(self) -> None:
        self._server.serve_forever()


class _Manager(BaseManager):
    """The client of ``ClusterServer``."""


_Manager.register("cluster", proxytype=_Proxy)


def connect(address: Address) -> RealKafka:
    """Return the cluster of a ``ClusterServer``; does not start it."""
    host, port, key = address
    manager = _Manager((host, port), bytes.fromhex(key))
    manager.connect()
    return cast(RealKafka, _Remote(manager.cluster()))  # type: ignore[attr-defined] # registered


class _Remote:
    """A cluster in another process."""

    def __init__(self, proxy: BaseProxy) -> None:
        self._proxy = proxy

    def __getattr__(self, name: str) -> Any:
        if isinstance(getattr(RealKafka, name), property):
            return self._call(_ATTRIBUTE, name)
        return functools.partial(self._call, name)

    def _call(self, name: str, *arguments: object, **named: object) -> Any:
        return self._proxy._callmethod(name, arguments, named)
