"""The commands ``fallback-…``: list, count, requeue and discard rows of the fallback table."""

import order_relay.cli.fallback.discard
import order_relay.cli.fallback.list
import order_relay.cli.fallback.requeue
import order_relay.cli.fallback.stats  # noqa: F401 - importing registers the commands
