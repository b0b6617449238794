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


class AutoRedrive:
    """Redrives the letters of one consumer that are due. Every worker tries; one at a time does."""

    def __init__(
        self,
        letters: OpenLetters,
        open_topic: Callable[[], AbstractAsyncContextManager[OpenTopic]],
        new_redrive: Callable[[], Redrive],
        *,
        waits_seconds: Sequence[float],
        rate: float,
        target_works: Callable[[], bool],
        on_redriven: Callable[[int], None] = lambda _: None,
        interval_seconds: float = INTERVAL_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Prepare; ``run`` redrives.

        Args:
            letters: The open letters.
            open_topic: Opens the dead-letter topic.
            new_redrive: Prepares a redrive at the rate.
            waits_seconds: The wait before the first redrive of a letter, the second, and so on.
            rate: Letters a second at most.
            target_works: Returns whether the target works now.
            on_redriven: Called with the number of letters after each round.
            interval_seconds: Seconds between two rounds, on average.
            clock: Seconds since the epoch.
        """
        self._letters = letters
        self._open_topic = open_topic
        self._new_redrive = new_redrive
        self._waits_seconds = waits_seconds
        self._rate = rate
        self._target_works = target_works
        self._on_redriven = on_redriven
        self._interval_seconds = interval_seconds
        self._clock = clock

    async def run(self) -> None:
        """Redrive what is due, again and again, until cancelled. Never raises."""
        while True:
            # Workers that were started together do not all try at the same moment.
            await asyncio.sleep(self._interval_seconds * random.uniform(0.5, 1.5))  # noqa: S311
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
        if not self._target_works():
            return
        limit = max(1, int(self._rate * ROUND_SECONDS))
        due = await self._letters.ask(
            lambda index: index.due(self._waits_seconds, self._clock(), limit=limit)
        )
        if not due:
            return
        positions = [LetterPosition(*position) for position in due]
        selection = Selection(positions, LetterFilter(), max_redrives=len(self._waits_seconds))
        redriven = 0
        async with self._open_topic() as topic:
            await selection.read(topic)
            if not selection.count:
                return
            redrive = self._new_redrive()
            async with topic.redriving(selection, redrive) as results:
                async for result in results:
                    redriven += result.result is RedriveResult.REDRIVEN
                    if not self._target_works():
                        redrive.stop("the target does not work")
        if redriven:
            logger.warning(LogLine("Dead letters redriven automatically", letters=redriven))
            self._on_redriven(redriven)
        self._letters.refresh_soon()
