"""Consumers and timers, one file each. Every module here is imported when the worker starts.

A consumer is a ``Consumer`` at the top of its module (docs/how-to/add-a-consumer.md). A module may
also have ``register(app)``, which the worker calls, to start background tasks for example.
"""
