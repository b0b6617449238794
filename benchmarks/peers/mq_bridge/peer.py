"""mq-bridge: a route from Kafka to HTTP, all of it in Rust.

``peer.py SERVERS TOPIC GROUP URL IN_FLIGHT``

A batch's requests are parallel; the next batch starts when all are answered. Several batches at a
time would be faster with a slow sink, but lose the order between batches, too.
"""

from __future__ import annotations

import logging
import sys

from mq_bridge import Route, init_logging


def main() -> None:
    servers, topic, group, url, in_flight = sys.argv[1:]
    logging.basicConfig(level=logging.WARNING)
    init_logging("warn")
    route = Route.from_config(
        {
            "input": {
                "kafka": {
                    "url": servers,
                    "topic": topic,
                    "group_id": group,
                    "consumer_options": [["auto.offset.reset", "earliest"]],
                }
            },
            "output": {"http": {"url": url, "batch_concurrency": int(in_flight)}},
            "batch_size": int(in_flight),
        }
    )
    route.run()


if __name__ == "__main__":
    main()
