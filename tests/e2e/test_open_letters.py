"""Dead letters that wait for a person are shown by every worker, over restarts."""

import json
from pathlib import Path

import pytest

from tests.support.dead_letter_commands import letter, put_letters, relay_on
from tests.support.sink import ScriptedSink
from tests.support.stage import Stage
from tests.support.waiting import eventually
from tests.support.worker import WorkerProcess

pytestmark = pytest.mark.e2e


async def test_open_letters_are_shown_until_they_are_redriven(stage: Stage, tmp_path: Path) -> None:
    """A worker that starts later counts the letters of before; a redriven one is open no more."""
    letters = [letter(1), letter(2, reason="tombstone"), letter(3), letter(4, reason="of_others")]
    await put_letters(stage, letters)
    commands = relay_on(stage, tmp_path)
    async with ScriptedSink() as sink, WorkerProcess(tmp_path, stage, sink.url) as worker:
        await worker.wait_ready()

        async def counts(**expected: int) -> bool:
            metrics = await worker.metrics()
            return all(
                metrics[f'order_relay_dead_letters_open{{reason="{reason}"}}'] == number
                for reason, number in expected.items()
            )

        await eventually(lambda: counts(rejected=2, tombstone=1, other=1, retries_exhausted=0))
        stats = await worker.get("/stats")
        assert stats is not None
        shown = json.loads(stats[1])["open_dead_letters"]
        assert shown["total"] == 4
        assert shown["by_reason"]["rejected"] == 2
        # Given up on 2025-12-19.
        assert shown["oldest_seconds"] > 86_400
        await commands("dlq", "redrive", "--reason", "rejected", "--yes")
        await eventually(lambda: counts(rejected=0, tombstone=1, other=1), timeout=60)
