"""The embedded cluster in a process of its own: prints its servers, ends with its input."""

from __future__ import annotations

import sys

from demo.kafka import EmbeddedCluster


def main() -> None:
    cluster = EmbeddedCluster()
    print(cluster.servers, flush=True)
    sys.stdin.read()
    cluster.stop()


if __name__ == "__main__":
    main()
