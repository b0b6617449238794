"""What the tests in this folder share: clients that lose little time."""

from collections.abc import Iterator

import pytest

# None of these is a limit: what they wait for is asked for more often, or sooner again.
MAX_SHORT_WAITS = {
    "order_relay.kafka.producer.RESTART_SECONDS": 0.2,
    "order_relay.kafka.producer.POLL_SECONDS": 0.05,
}


@pytest.fixture(autouse=True, scope="module")
def short_waits() -> Iterator[None]:
    """Pauses of seconds between two tries, right in production, are fractions of one here."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in MAX_SHORT_WAITS.items():
            patch.setattr(name, value)
        yield
