"""Delivery: every record reaches the target or the dead-letter topic.

This package does no I/O and imports neither Faust nor a Kafka client. Its rules (order, retry,
breaker, progress) run without a broker and with an injected clock.
"""
