"""The commands beside ``faust -A app worker``. Importing them makes them known to Faust."""

from app.operations.commands import (
    fallback_discard,
    fallback_list,
    fallback_requeue,
    fallback_stats,
    order_status,
    publish,
)

__all__ = [
    "fallback_discard",
    "fallback_list",
    "fallback_requeue",
    "fallback_stats",
    "order_status",
    "publish",
]
