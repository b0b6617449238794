"""The commands ``fallback-…``: list, count, requeue and discard rows of the fallback table."""

import order_relay.cli.fallback.bulk_change
import order_relay.cli.fallback.list  # noqa: F401 - importing registers the commands
