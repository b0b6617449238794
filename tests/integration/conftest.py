"""The embedded cluster, a stage on it and a scripted sink for the tests in this folder."""

from tests.support.fixtures import embedded, fragile, sink, stage

__all__ = ["embedded", "fragile", "sink", "stage"]
