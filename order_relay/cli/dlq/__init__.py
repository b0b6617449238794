"""The commands ``order-relay dlq``: list, show, redrive, discard and purge dead letters."""
