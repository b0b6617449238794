"""The worker: the Faust application, one runtime for each consumer, start and shutdown."""

from order_relay.worker.create_app import create_app
from order_relay.worker.relay_app import RelayApp

__all__ = ["RelayApp", "create_app"]
