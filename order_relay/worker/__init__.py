"""The worker: the Faust application, one runtime for each consumer, start and shutdown."""
