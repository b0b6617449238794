"""The worker: the Faust application, one runtime for each consumer, start and shutdown."""

from importlib.util import find_spec

if find_spec("aiokafka") is None:
    raise ImportError("order_relay.worker needs: pip install 'order-relay[worker]'")

from order_relay.worker.relay_app import RelayApp, create_app

__all__ = ["RelayApp", "create_app"]
