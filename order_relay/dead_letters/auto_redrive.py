"""DLQ_AUTO_REDRIVE: letters that ran out of retries are redriven after chosen waits.

Only while the target works, at a bounded rate, and never more often than there are waits: each
redrive counts in ``dlq-redrives``, those of a person too.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING

from order_relay.dead_letters.filters import LetterFilter
from order_relay.dead_letters.letter import LetterPosition
from order_relay.dead_letters.open_letters import OpenLetters
from order_relay.dead_letters.redrive import AnotherRedrive, Redrive, RedriveResult, Selection
from order_relay.errors import RelayError
from order_relay.logs.log_line import LogLine

if TYPE_CHECKING:
    from order_relay.dead_letters.open_topic import OpenTopic

logger = logging.getLogger(__name__)

INTERVAL_SECONDS = 10.0
# A person who redrives meanwhile has to wait for the end of a round.
ROUND_SECONDS = 20.0


@dataclass(eq=False)
class AutoRedrive:
    """Redrives the letters of one consumer that are due. Every worker tries; one at a time does.

    A letter waits for the first of ``waits_seconds`` before its first redrive, and so on. At most
    ``rate`` letters a second are redriven. ``on_redriven`` is called with their number after each
    round; rounds are ``interval_seconds`` apart on average.
    """

    letters: OpenLetters
    open_topic: Callable[[], AbstractAsyncContextManager[OpenTopic]]
    new_redrive: Callable[[], Redrive]
    _: KW_ONLY
    waits_seconds: Sequence[float]
    rate: float
    target_works: Callable[[], bool]
    on_redriven: Callable[[int], None] = lambda _: None
    interval_seconds: float = INTERVAL_SECONDS
    clock: Callable[[], float] = time.time

    async def run(self) -> None:
        """Redrive what is due, again and again, until cancelled. Never raises."""
        while True:
            # Workers that were started together do not all try at the same moment.
            await asyncio.sleep(self.interval_seconds * random.uniform(0.5, 1.5))  # noqa: S311
            try:
                await self.redrive_due()
            except AnotherRedrive:
                pass  # of a person, or of another worker
            except RelayError as error:
                logger.info(LogLine("Dead letters not redriven automatically", error=str(error)))
            except Exception:
                logger.exception("Automatic redriving failed with an unexpected error")

    async def redrive_due(self) -> None:
        """Redrive letters that are due now.

        Raises:
            RelayError: Kafka does not answer, or another redrive runs.
        """
        if not self.target_works():
            return
        limit = max(1, int(self.rate * ROUND_SECONDS))
        due = await self.letters.ask(
            lambda index: index.due(self.waits_seconds, self.clock(), limit=limit)
        )
        if not due:
            return
        positions = [LetterPosition(*position) for position in due]
        selection = Selection(positions, LetterFilter(), max_redrives=len(self.waits_seconds))
        redriven = 0
        async with self.open_topic() as topic:
            await selection.read(topic)
            if not selection.count:
                return
            redrive = self.new_redrive()
            async with topic.redriving(selection, redrive) as results:
                async for result in results:
                    redriven += result.result is RedriveResult.REDRIVEN
                    if not self.target_works():
                        redrive.stop("the target does not work")
        if redriven:
            logger.warning(LogLine("Dead letters redriven automatically", letters=redriven))
            self.on_redriven(redriven)
        self.letters.refresh_soon()
