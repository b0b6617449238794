"""The last hours of a consumer: figures by the minute, and what its target did."""

from order_relay.delivery.target_health import TargetState
from order_relay.monitoring.history import HOURS, STATES_KEPT, History
from tests.support.targets import target


class Watched:
    """A history with a clock, a target and figures of its own."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.target = target()
        self.figures = (0.0, 0.0, 0.0)
        self.history = History(lambda: self.target, lambda: self.figures, lambda: self.now)

    def look(self, seconds: float = 1.0) -> None:
        """Look, some seconds later."""
        self.now += seconds
        self.history.look()


def test_figures_are_kept_once_a_minute_for_six_hours() -> None:
    """A sample a minute; the oldest go."""
    watched = Watched()
    for second in range(150):
        watched.figures = (float(second), 0.5, 7.0)
        watched.look()
    minutes = watched.history.as_json()["minutes"]
    assert [one["lag"] for one in minutes] == [0, 60, 120]
    assert minutes[0] == {"at": 1001.0, "lag": 0, "oldest_seconds": 0.5, "delivered": 7}
    for _ in range(HOURS * 60 + 5):
        watched.look(60)
    assert len(watched.history.as_json()["minutes"]) == HOURS * 60


def test_a_change_of_the_target_is_noted_once() -> None:
    """From works to down and back: three entries, each with the line of its moment."""
    watched = Watched()
    for state in (TargetState.WORKS, TargetState.DOWN, TargetState.WORKS):
        watched.target = target(state=state)
        watched.look()
        watched.look()
    changes = watched.history.as_json()["target"]
    assert [one["state"] for one in changes] == ["works", "down", "works"]
    assert [one["at"] for one in changes] == [1001.0, 1003.0, 1005.0]
    assert changes[1]["said"] == str(target(state=TargetState.DOWN))


def test_a_target_that_flaps_fills_no_memory() -> None:
    """Only the latest changes are kept."""
    watched = Watched()
    for number in range(3 * STATES_KEPT):
        state = TargetState.DOWN if number % 2 else TargetState.WORKS
        watched.target = target(state=state)
        watched.look()
    assert len(watched.history.as_json()["target"]) == STATES_KEPT
