"""Parts of Faust where ours differ: metrics, tables, flow control, and where settings come from."""

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

ENDS_TOLD_SECONDS = 1.0


class RelayMonitor(PrometheusMonitor):
    """Faust's own metrics, without the ones that cost most for each record.

    The relay counts deliveries itself; Faust's per-stream labels would be normalised by regular
    expression for every event, and its active counts never fall for streams without acks.
    """

    def __init__(self, **kwargs: Any) -> None:
        """Take what Faust's takes."""
        super().__init__(**kwargs)
        self._ends_told_at: dict[TP, float] = {}

    def track_tp_end_offset(self, tp: TP, offset: int) -> None:
        """Show a partition's end, once a second: with few records in a fetch it costs as much."""
        now = time.monotonic()
        if now - self._ends_told_at.get(tp, 0.0) >= ENDS_TOLD_SECONDS:
            self._ends_told_at[tp] = now
            super().track_tp_end_offset(tp, offset)

    def on_stream_event_in(
        self, tp: TP, offset: int, stream: faust.StreamT[Any], event: faust.EventT[Any]
    ) -> dict[str, Any] | None:
        """Count the batch's records, nothing more."""
        records = len(cast(list[Record], event.value))
        self.events_total += records
        self._metrics.total_events.inc(records)
        return None


class FaustSettings(faust.Settings):
    """Faust's settings as ``make_app`` gives them.

    Faust would let the environment override each of them: a stray CONSUMER_AUTO_OFFSET_RESET or
    BROKER_URL would change what is delivered, and from where.
    """

    def getenv(self, env_name: str) -> Any:
        """Find nothing."""
        return None


class WithoutKafka(BootStrategy):
    """What Faust starts of an app that reads and writes nothing itself."""

    enable_kafka = False
    enable_sensors = False


class FlowControl(FlowControlEvent):
    """Faust's control of what flows into the streams, which drops nothing that flows already.

    Faust resumes the flow twice after a rebalance, before its seek and after it, and empties the
    streams' queues each time. A batch that was handed out in between was dropped, though its
    records count as taken: they were not delivered until the next rebalance.
    """

    def resume(self) -> None:
        """Let it flow; what is in the queues goes only where the flow was suspended."""
        if not self.is_active():
            super().resume()


class PatientRecovery(Recovery):
    """Faust's way from an assignment to the flow of records, which does not give up.

    Faust waits for the seek for ``broker_request_timeout``, and takes a wait that was too short for
    a stop: it ended without a word, and no record flowed again, whatever came afterwards.
    """

    async def _wait(self, coro: Any, timeout: Seconds | None = None) -> None:
        """Wait until it is done, the next rebalance begins, or the worker stops."""
        await super()._wait(coro)


class ForeignChangelogs(TableManager):
    """Faust's tables, whose changelogs are no business of the consumer group.

    Faust would subscribe the group to them, for which all members must change their assignor at
    once, and stop every partition while it reads them (docs/decisions/0014).
    """

    @property
    def changelog_topics(self) -> set[str]:
        """Return none: Faust has nothing to read."""
        return set()

    @property
    def recovery(self) -> PatientRecovery:
        """What lets records flow after a rebalance."""
        if self._recovery is None:
            self._recovery = PatientRecovery(self.app, self, beacon=self.beacon, loop=self.loop)
        return cast(PatientRecovery, self._recovery)

    async def on_start(self) -> None:
        """Go on at once; Faust waits a second for tables that are registered late."""
        await self._update_channels()
        await self.recovery.start()

    async def _update_channels(self) -> None:
        self._tables_finalized.set()
        self._tables_registered.set()
