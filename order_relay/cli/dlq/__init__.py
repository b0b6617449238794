"""The commands ``dlq-…``: list, show, redrive and purge dead letters."""

import order_relay.cli.dlq.list
import order_relay.cli.dlq.purge
import order_relay.cli.dlq.redrive
import order_relay.cli.dlq.show  # noqa: F401 - importing registers the commands
