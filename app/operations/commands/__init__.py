"""The commands beside ``faust -A app worker``. Importing them makes them known to Faust."""

from app.operations.commands import (
    dlq_list,
    dlq_purge,
    dlq_redrive,
    dlq_show,
    fallback_discard,
    fallback_list,
    fallback_requeue,
    fallback_stats,
    order_status,
    publish,
)

__all__ = [
    "dlq_list",
    "dlq_purge",
    "dlq_redrive",
    "dlq_show",
    "fallback_discard",
    "fallback_list",
    "fallback_requeue",
    "fallback_stats",
    "order_status",
    "publish",
]
