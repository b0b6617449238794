"""All that is shown at one moment, gathered in one value."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import StrEnum

from demo.consumer_ledger import ConsumerBalance
from demo.delivery_times import Percentiles
from demo.ledger import Balance
from demo.worker_log import Warned
from demo.worker_metrics import WorkerMetrics


class Phase(StrEnum):
    """How far the demonstration is."""

    STARTING = "starting"
    RUNNING = "running"
    FINISHING = "waiting for the last orders"
    CLOSING = "shop closed, waiting for the last orders"
    STOPPING = "stopping, the worker finishes what it has begun"


class WorkerState(StrEnum):
    """How the worker is."""

    STARTING = "starting"
    READY = "ready"
    NOT_READY = "not ready"
    SILENT = "does not answer"
    DRAINING = "finishing"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class LoggerFigures:
    """What the sample logger did.

    Attributes:
        requests: Requests that came.
        accepted: Answered 2xx.
        refused: Answered 4xx for good.
        failures: Failures by kind.
        slow: Requests that took long.
        outages: Full outages begun.
        is_down: Whether one is on.
    """

    requests: int
    accepted: int
    refused: int
    failures: dict[str, int]
    slow: int
    outages: int
    is_down: bool

    @property
    def failed(self) -> int:
        """Requests that failed, in outages or outside."""
        return sum(self.failures.values())


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One moment of the demonstration.

    Attributes:
        elapsed_seconds: Since all was started.
        goal: Orders to pay; ``None`` without an end.
        phase: How far it is.
        balance: The ledger's figures.
        paid_per_second: Payments lately.
        delivered_per_second: Deliveries lately.
        times: Delivery times of the last minute, if there were deliveries.
        worker: How the worker is.
        metrics: What it says about itself.
        logger: What the sample logger did.
        kafka_is_down: Whether the embedded cluster is out of reach.
        kafka_outages: How often it was.
        warnings: The worker's last warnings, one of each kind.
        log_path: File of the worker's log.
        console_url: Where the worker shows its console.
        consumers: Figures of the consumers beside order_logging.
    """

    elapsed_seconds: float
    goal: int | None
    phase: Phase
    balance: Balance
    paid_per_second: float
    delivered_per_second: float
    times: Percentiles | None
    worker: WorkerState
    metrics: WorkerMetrics
    logger: LoggerFigures
    kafka_is_down: bool
    kafka_outages: int
    warnings: tuple[Warned, ...]
    log_path: str
    console_url: str
    consumers: tuple[ConsumerBalance, ...] = ()


class RateMeter:
    """Turns a growing count into a rate over the last seconds."""

    def __init__(self, window_seconds: float = 5.0) -> None:
        self._window_seconds = window_seconds
        self._readings: deque[tuple[float, int]] = deque()

    def read(self, now: float, count: int) -> float:
        """Take a reading; returns the rate a second over the window."""
        self._readings.append((now, count))
        while now - self._readings[0][0] > self._window_seconds:
            self._readings.popleft()
        then, earlier = self._readings[0]
        return (count - earlier) / (now - then) if now > then else 0.0
