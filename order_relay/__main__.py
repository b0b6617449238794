"""``python -m order_relay``, which is the command ``order-relay``."""

from order_relay.cli.main import main

main()
