"""Free loopback ports that stay free while a broker is down."""

import os
import random
import socket
from pathlib import Path

LOOPBACK = "127.0.0.1"
LOWEST = 10_000
# Reserved for brokers: other tests must not take the port of a dead one.
FOR_BROKERS = range(LOWEST, LOWEST + 2_000)


_GIVEN: set[int] = set()
# UDP sockets, which do not block TCP listeners, mark ports as taken for other test runs.
_RESERVED: list[socket.socket] = []


def free_ports(count: int, *, for_brokers: bool = False) -> list[int]:
    """Return `count` different ports that nothing listens on.

    None is given twice in a test run while there are others: its user may listen on it only
    later, or stop for a while.

    They lie below the range the kernel takes outgoing connections from. A port inside that range
    can be lost while its broker is down: to another connection, or to a client that retries the
    broker's own address and, getting that very port as its source, connects to itself.
    """
    ports = FOR_BROKERS if for_brokers else range(FOR_BROKERS.stop, _first_ephemeral_port())
    candidates = [port for port in ports if _is_ours(port)]
    # The system's: with a fixed seed, all test processes would try the same ones first.
    random.SystemRandom().shuffle(candidates)
    candidates.sort(key=_GIVEN.__contains__)  # those that were given come last
    free: list[int] = []
    for port in candidates:
        if _is_free(port) and (not for_brokers or _reserve(port)):
            free.append(port)
            if len(free) == count:
                _GIVEN.update(free)
                return free
    raise RuntimeError(f"fewer than {count} free ports on {LOOPBACK} from {ports.start} on")


def _is_ours(port: int) -> bool:
    """Whether a port is for this one of the parallel test processes."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    return port % int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) == int(worker)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As the JVM does it: a port whose last connections are in TIME_WAIT counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def _reserve(port: int) -> bool:
    """Reserve a port until this process ends; return False if another one has it."""
    reserved = socket.socket(type=socket.SOCK_DGRAM)
    try:
        reserved.bind((LOOPBACK, port))
    except OSError:
        reserved.close()
        return False
    _RESERVED.append(reserved)
    return True


def _first_ephemeral_port() -> int:
    try:
        first = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()
    except OSError:  # not Linux; this is the IANA range
        return 49_152
    return max(int(first[0]), FOR_BROKERS.stop + 1_000)
