"""Replacements for parts of Faust: metrics, settings, flow control, recovery, tables."""

from __future__ import annotations

import time
from typing import Any, cast

import faust
from faust.app.base import BootStrategy
from faust.sensors.prometheus import PrometheusMonitor
from faust.tables.manager import TableManager
from faust.tables.recovery import Recovery
from faust.types import TP
from mode.utils.queues import FlowControlEvent
from mode.utils.times import Seconds

from order_relay.model.record import Record

END_OFFSET_INTERVAL_SECONDS = 1.0


class RelayMonitor(PrometheusMonitor):
    """Faust's metrics without the most expensive ones per event.

    The relay counts deliveries itself. Faust normalizes its per-stream labels with a regular
    expression for each event, and its active counts never fall for streams without acks.
    """

    def __init__(self, **kwargs: Any) -> None:
        """Take the arguments of Faust's monitor."""
        super().__init__(**kwargs)
        self._end_offset_shown_at: dict[TP, float] = {}

    def track_tp_end_offset(self, tp: TP, offset: int) -> None:
        """Show a partition's end offset once a second; each fetch would be too expensive."""
        now = time.monotonic()
        if now - self._end_offset_shown_at.get(tp, 0.0) >= END_OFFSET_INTERVAL_SECONDS:
            self._end_offset_shown_at[tp] = now
            super().track_tp_end_offset(tp, offset)

    def on_stream_event_in(
        self, tp: TP, offset: int, stream: faust.StreamT[Any], event: faust.EventT[Any]
    ) -> dict[str, Any] | None:
        """Count the records of the batch."""
        records = len(cast(list[Record], event.value))
        self.events_total += records
        self._metrics.total_events.inc(records)
        return None


class FaustSettings(faust.Settings):
    """Faust's settings without the environment.

    Faust lets environment variables override all settings. A stray CONSUMER_AUTO_OFFSET_RESET or
    BROKER_URL would change which records are delivered.
    """

    def getenv(self, env_name: str) -> Any:
        """Return ``None``: no setting is read from the environment."""
        return None


class WithoutKafka(BootStrategy):
    """Starts an app without Faust's consumer, producer, sensors and web server."""

    enable_kafka = False
    enable_sensors = False
    enable_web = False


class FlowControl(FlowControlEvent):
    """Faust's flow control, except that resuming an active flow drops nothing.

    Faust resumes the flow twice after a rebalance, before and after its seek, and clears the
    streams' queues each time. A batch handed over in between would be dropped although its records
    are claimed, and would not be delivered before the next rebalance.
    """

    def resume(self) -> None:
        """Resume the flow. Queues are cleared only if it was suspended."""
        if not self.is_active():
            super().resume()


class PatientRecovery(Recovery):
    """Faust's recovery after an assignment, without its time-out.

    Faust waits ``broker_request_timeout`` for the seek, and treats a longer seek as a stop: the
    recovery task ends without a log line, and no record is read again.
    """

    async def _wait(self, coro: Any, timeout: Seconds | None = None) -> None:
        """Wait until it is done, the next rebalance starts, or the worker stops."""
        await super()._wait(coro)


class ForeignChangelogs(TableManager):
    """Faust's tables without their changelogs, which the relay reads and writes itself.

    Faust would subscribe the group to them. All members would have to change their assignor at the
    same time, and every partition would wait while they are read (docs/decisions/0014).
    """

    @property
    def changelog_topics(self) -> set[str]:
        """Return an empty set, so that Faust reads none."""
        return set()

    @property
    def recovery(self) -> PatientRecovery:
        """The task that resumes the flow after a rebalance."""
        if self._recovery is None:
            self._recovery = PatientRecovery(self.app, self, beacon=self.beacon, loop=self.loop)
        return cast(PatientRecovery, self._recovery)

    async def on_start(self) -> None:
        """Start at once; Faust would wait a second for tables that are registered late."""
        await self._update_channels()
        await self.recovery.start()

    async def _update_channels(self) -> None:
        self._tables_finalized.set()
        self._tables_registered.set()
