"""The relay on one machine with nothing installed: ``python -m demo``.

An embedded Kafka cluster, a sample order shop, a scripted sample logger and the real worker,
with a live view, and a ledger at the end that says what became of every order.
"""
