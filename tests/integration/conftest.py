"""Fixtures of this folder: clients that poll and restart quickly."""

from collections.abc import Iterator

import pytest

# None of these is a time limit: clients only poll more often and restart sooner.
MAX_SHORT_WAITS = {
    "order_relay.kafka.producer.RESTART_SECONDS": 0.2,
    "order_relay.kafka.producer.POLL_SECONDS": 0.05,
}


@pytest.fixture(autouse=True, scope="module")
def short_waits() -> Iterator[None]:
    """Shorten pauses between tries to fractions of a second."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in MAX_SHORT_WAITS.items():
            patch.setattr(name, value)
        yield
