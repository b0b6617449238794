"""Parts of Faust where ours differ: metrics, tables, flow control, and where settings come from."""

from __future__ import annotations

from typing import Any, cast

import faust
from faust.sensors.prometheus import PrometheusMonitor
from faust.tables.manager import TableManager
from faust.types import TP
from mode.utils.queues import FlowControlEvent

from app.delivery.record import Record


class RelayMonitor(PrometheusMonitor):
    """Faust's own metrics, without the ones that cost most for each record.

    The relay counts deliveries itself; Faust's per-stream labels would be normalised by regular
    expression for every event, and its active counts never fall for streams without acks.
    """

    def on_stream_event_in(
        self, tp: TP, offset: int, stream: faust.StreamT[Any], event: faust.EventT[Any]
    ) -> dict[str, Any] | None:
        """Count the batch's records, nothing more."""
        records = len(cast(list[Record], event.value))
        self.events_total += records
        self._metrics.total_events.inc(records)
        return None


class FaustSettings(faust.Settings):
    """Faust's settings as ``create_app`` gives them.

    Faust would let the environment override each of them: a stray CONSUMER_AUTO_OFFSET_RESET or
    BROKER_URL would change what is delivered, and from where.
    """

    def getenv(self, env_name: str) -> Any:
        """Find nothing."""
        return None


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


class ForeignChangelogs(TableManager):
    """Faust's tables, whose changelogs are no business of the consumer group.

    Faust would subscribe the group to them, for which all members must change their assignor at
    once, and stop every partition while it reads them (docs/decisions/0014).
    """

    @property
    def changelog_topics(self) -> set[str]:
        """Return none: Faust has nothing to read."""
        return set()

    async def on_start(self) -> None:
        """Go on at once; Faust waits a second for tables that are registered late."""
        await self._update_channels()
        await self.recovery.start()

    async def _update_channels(self) -> None:
        self._tables_finalized.set()
        self._tables_registered.set()
