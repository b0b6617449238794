"""How the worker shares out the file descriptors that it may have."""

import resource

import pytest

from order_relay.settings import load_settings
from order_relay.worker import file_descriptors
from order_relay.worker.file_descriptors import share

pytestmark = pytest.mark.usefixtures("empty_environment")


def test_enough_of_them() -> None:
    """With as many as the settings need, nothing is reduced."""
    settings = load_settings(max_in_flight=1000)
    needed = share([settings], 0).needed
    shares = share([settings], needed)
    assert shares.max_in_flight == (1000,)
    assert needed == file_descriptors.OTHERS + 1000 + shares.web_connections
    assert share([settings], 10 * needed).web_connections == shares.web_connections
    assert (
        share([load_settings(deliveries_store="rocksdb")], 0).needed
        > share([load_settings()], 0).needed
    )


@pytest.mark.parametrize("obtainable", [104, 128, 200, 256, 1024, 2048, 4096])
@pytest.mark.parametrize("max_in_flight", [1, 256, 100_000])
def test_few_of_them(obtainable: int, max_in_flight: int) -> None:
    """The shares are never more than the limit, and each use gets some."""
    shares = share([load_settings(max_in_flight=max_in_flight)], obtainable)
    (granted,) = shares.max_in_flight
    assert 1 <= granted <= max_in_flight
    assert shares.web_connections >= 2
    total = file_descriptors.OTHERS + granted + shares.web_connections
    assert total <= obtainable


def test_several_consumers_share_in_proportion() -> None:
    """Each gets its part, at least one, and none more than it asks for."""
    settings = [load_settings(max_in_flight=number) for number in (300, 100, 1)]
    enough = share(settings, 10_000)
    assert enough.max_in_flight == (300, 100, 1)
    few = share(settings, 400)
    assert few.max_in_flight[0] == pytest.approx(3 * few.max_in_flight[1], abs=3)
    assert few.max_in_flight[2] == 1
    total = file_descriptors.OTHERS + sum(few.max_in_flight) + few.web_connections
    assert total <= 400


@pytest.mark.parametrize("obtainable", [0, 20, 100])
def test_hardly_any(obtainable: int) -> None:
    """A worker with too few even for Kafka uses one connection of each kind."""
    shares = share([load_settings()], obtainable)
    assert (shares.max_in_flight, shares.web_connections) == ((1,), 1)


def test_a_limit_that_the_system_does_not_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the limit is "unlimited", the worker asks for macOS's maximum; a refusal is ignored."""
    asked = []

    def refuse(kind: int, limits: tuple[int, int]) -> None:
        asked.append(limits)
        raise ValueError("not allowed to raise maximum limit")

    unlimited = (256, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda _: unlimited)
    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert file_descriptors.obtain([load_settings()]) == share([load_settings()], 10_240)
    assert asked == [(10_240, resource.RLIM_INFINITY)]
