"""``python -m demo.kafka``: the embedded cluster by itself, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import asyncio
import sys

from demo.embedded_cluster import LIMITS, EmbeddedCluster
from demo.errors import CannotRun
from demo.interruption import Interruption

# After a worker has left, these brokers let nobody into its group before the session has ended.
SESSION_TIMEOUT_MS = 6_000


def main() -> int:
    """Hold the cluster open; returns the exit status."""
    try:
        asyncio.run(_serve())
    except CannotRun as error:
        sys.stderr.write(f"quickstart: {error}\n")
        return 1
    return 0


async def _serve() -> None:
    interruption = Interruption()
    interruption.listen()
    cluster = EmbeddedCluster()
    servers = cluster.start()
    sys.stdout.write(
        f"{LIMITS}\nIn other terminals, for workers and commands:\n\n"
        f"export KAFKA_BOOTSTRAP_SERVERS={servers}\n"
        f"export KAFKA_DECLARE_TOPICS=false KAFKA_SESSION_TIMEOUT_MS={SESSION_TIMEOUT_MS}\n"
    )
    sys.stdout.flush()
    try:
        await interruption.first.wait()
    finally:
        cluster.stop()


if __name__ == "__main__":
    sys.exit(main())
