"""The commands ``order-relay dlq``: list, show, redrive and purge dead letters."""
