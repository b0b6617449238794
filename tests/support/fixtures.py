"""Fixtures for the folders that use the embedded cluster or the scripted sink."""

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.support.embedded import EmbeddedKafka
from tests.support.sink import ScriptedSink
from tests.support.stage import Stage


@pytest.fixture(scope="session")
def embedded() -> Iterator[EmbeddedKafka]:
    """One embedded cluster for the whole run; a test that hurts its cluster makes its own."""
    with EmbeddedKafka() as cluster:
        yield cluster


@pytest.fixture
def fragile() -> Iterator[EmbeddedKafka]:
    """A cluster of the test's own, to take down."""
    with EmbeddedKafka() as cluster:
        yield cluster


@pytest.fixture
def stage(embedded: EmbeddedKafka) -> Stage:
    """Topics and a group of this test's own."""
    return embedded.stage()


@pytest.fixture
async def sink() -> AsyncIterator[ScriptedSink]:
    """A scripted external logger in the test's loop."""
    async with ScriptedSink() as scripted:
        yield scripted
