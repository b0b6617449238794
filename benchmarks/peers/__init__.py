"""``python -m benchmarks.peers``: others of the relay's kind beside it, on the same records."""
