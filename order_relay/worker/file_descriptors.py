"""How many files and connections the worker may have open, and what it does with them."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Sequence
from dataclasses import dataclass

from order_relay.settings import Settings
from order_relay.web.connections import ConnectionLimits

# What macOS lets a process have where it says "unlimited" (OPEN_MAX).
UNLIMITED = 10_240
# Some 50 are open while nothing happens: Kafka (two clients, a connection to each broker that leads
# a partition), event loops, log. A database's pool is 15 at most, a name lookup or a command 1.
OTHERS = 100
# Of each consumer after the first: its own client of Kafka, and its thread's event loop.
CONSUMER = 20
# It keeps its files open: some ten for each partition.
ROCKSDB = 100


@dataclass(frozen=True, slots=True)
class Shares:
    """What the worker may have open.

    Attributes:
        needed: What the settings ask for.
        obtainable: What the system allows.
        max_in_flight: Deliveries at a time of each consumer, each with a connection:
            MAX_IN_FLIGHT, or fewer.
        web_connections: Connections to the web server.
    """

    needed: int
    obtainable: int
    max_in_flight: tuple[int, ...]
    web_connections: int


def share(consumers: Sequence[Settings], obtainable: int) -> Shares:
    """Share out what is obtainable among consumers, given by their settings.

    What Kafka and the database need comes first: without them nothing goes. Deliveries get up to
    half of the rest, each consumer in proportion to what it asks for, and the web server what is
    left.
    """
    others = OTHERS + CONSUMER * (len(consumers) - 1)
    others += sum(ROCKSDB for one in consumers if one.deliveries_store == "rocksdb")
    wanted = ConnectionLimits().connections
    rest = max(obtainable - others, 2)
    asked = sum(one.max_in_flight for one in consumers)
    granted = min(asked, rest // 2)
    return Shares(
        needed=others + asked + wanted,
        obtainable=obtainable,
        max_in_flight=tuple(max(one.max_in_flight * granted // asked, 1) for one in consumers),
        web_connections=min(wanted, rest - granted),
    )


def obtainable() -> int:
    """Return how many file descriptors this process may have, once it has asked for them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(soft, UNLIMITED) if hard == resource.RLIM_INFINITY else hard


def obtain() -> None:
    """Raise the soft limit as far as the hard one allows; keep it where the system refuses."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (obtainable(), hard))
