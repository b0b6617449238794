"""Consumers and timers, one file each. Every module here is imported when the worker starts.

A consumer is a ``Consumer`` at the top of its module (docs/how-to/add-a-consumer.md); a module may
have ``register(app)`` besides, for what is no consumer.
"""
