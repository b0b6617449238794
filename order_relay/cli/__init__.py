"""The commands beside ``faust -A app worker``. Importing them makes them known to Faust."""

from order_relay.cli import dlq, fallback, order, publish

__all__ = ["dlq", "fallback", "order", "publish"]
