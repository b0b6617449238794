"""The consuming half: every record reaches the target or the dead-letter topic.

Nothing here knows Faust or a Kafka client; the rules (order, retry, breaker, progress) run
without a broker and with an injected clock.
"""
