"""Consumers and timers, one file each. The worker imports every module here when it starts.

A consumer is a ``Consumer`` at module level (docs/how-to/add-a-consumer.md). A module may also have
a function ``register(app)``, which the worker calls, for example to add background tasks.
"""
