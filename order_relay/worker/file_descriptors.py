"""Shares the process's file descriptors between deliveries and the web server."""

from __future__ import annotations

import contextlib
import logging
import resource
from collections.abc import Sequence
from dataclasses import dataclass

from order_relay.logs.log_line import LogLine
from order_relay.settings import Settings
from order_relay.web.connections import ConnectionLimits

logger = logging.getLogger(__name__)

# The real limit on macOS if the hard limit is "unlimited" (OPEN_MAX).
UNLIMITED = 10_240
# An idle worker has some 50 open: two Kafka clients, each with a connection to every leader, event
# loops, logs. A database pool takes 15 at most, a name lookup or a command 1.
OTHERS = 100
# For each consumer after the first: its Kafka client, and its thread's event loop.
CONSUMER = 20
# RocksDB keeps some ten files open for each partition.
ROCKSDB = 100


@dataclass(frozen=True, slots=True)
class Shares:
    """Numbers of file descriptors.

    Attributes:
        needed: How many the settings need.
        max_in_flight: For the concurrent deliveries of each consumer, each with a connection:
            MAX_IN_FLIGHT or fewer.
        web_connections: For connections to the web server.
    """

    needed: int
    max_in_flight: tuple[int, ...]
    web_connections: int


def share(consumers: Sequence[Settings], obtainable: int) -> Shares:
    """Divide the obtainable file descriptors; ``consumers`` are the settings of each consumer.

    Kafka and the database come first, since nothing works without them. Deliveries get up to half
    of the rest, in proportion to each consumer's MAX_IN_FLIGHT. The web server gets what is left.
    """
    others = OTHERS + CONSUMER * (len(consumers) - 1)
    others += sum(ROCKSDB for one in consumers if one.deliveries_store == "rocksdb")
    wanted = ConnectionLimits().connections
    rest = max(obtainable - others, 2)
    asked = sum(one.max_in_flight for one in consumers)
    granted = min(asked, rest // 2)
    return Shares(
        others + asked + wanted,
        tuple(max(one.max_in_flight * granted // asked, 1) for one in consumers),
        min(wanted, rest - granted),
    )


def obtain(consumers: Sequence[Settings]) -> Shares:
    """Raise the soft limit to the hard limit, and share it; a refusal of the system is ignored."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    obtainable = max(soft, UNLIMITED) if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (obtainable, hard))
    shares = share(consumers, obtainable)
    if obtainable < shares.needed:
        logger.warning(
            LogLine(
                "File descriptors are few, fewer connections are open at a time",
                obtainable=obtainable,
                needed=shares.needed,
                max_in_flight=",".join(map(str, shares.max_in_flight)),
                web_connections=shares.web_connections,
            )
        )
    return shares
