"""The commands ``order-relay fallback``: list, count, requeue and discard rows."""
