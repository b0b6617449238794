"""``python -m benchmarks.peers``: similar programs compared with the relay, on the same records."""
