"""``order-relay dlq …`` on real Kafka: redriven letters, purging, and two redrives at once."""

import asyncio
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tests.kafka.administration import Administration
from tests.support.dead_letter_commands import letter, positions, put_letters, redriving, relay_on
from tests.support.kafka.cluster import RealKafka
from tests.support.orders import order
from tests.support.publish_command import Commands, Ended, end_by_signal
from tests.support.sink import Answer, ScriptedSink
from tests.support.stage import Committed, Stage
from tests.support.worker import WorkerProcess

LETTERS = 60


@pytest.fixture
def stage(kafka: RealKafka, stage: Stage) -> Stage:
    """Its topics exist."""
    kafka.create_topic(stage.topic)
    kafka.create_topic(stage.dlq_topic)
    return stage


async def redriven(stage: Stage) -> Counter[str]:
    """How often each event was published to the orders' topic."""
    return Counter(row.text("event-id") or "" for row in await stage.records())


async def test_redriven_letters_are_stored_and_can_be_purged(stage: Stage, tmp_path: Path) -> None:
    """Redriven letters are in commit metadata, the first ones in the offset; these are purged."""
    commands = relay_on(stage, tmp_path)
    await put_letters(stage, [letter(n, partition=n % 2) for n in range(20)])
    await commands("dlq", "redrive", "0:3", "0:5", "--yes")
    (committed,) = (await redriving(stage).committed()).values()
    assert committed.offset == 0
    assert committed.metadata.startswith("redriven2:")
    assert await positions(commands, "--key", "6") == []
    assert len(await positions(commands)) == 18
    nothing = await commands("dlq", "purge", "--yes", "--json")
    assert [one["letters"] for one in nothing.objects] == [0, 0, 0]

    await commands("dlq", "redrive", *(f"0:{n}" for n in (0, 1, 2, 4, 7)), "--yes")
    purged = await commands("dlq", "purge", "--yes", "--json")
    assert [(one["before"], one["letters"], one["open"]) for one in purged.objects] == [
        (6, 6, 0), (0, 0, 0), (0, 0, 0),
    ]  # fmt: skip
    assert await positions(commands, "--all") == [
        *(f"0:{n}" for n in range(6, 10)), *(f"1:{n}" for n in range(10)),
    ]  # fmt: skip
    gone = await commands("dlq", "redrive", "0:1", "--yes", statuses=(1,))
    assert "there is no such letter" in gone.out

    rest = await commands("dlq", "redrive", "--all", "--yes")
    assert "13 letters were redriven" in rest.out
    assert await redriven(stage) == {f"paid-{n}": 1 for n in range(20)}
    await put_letters(stage, [letter(77)])
    all_gone = await commands("dlq", "purge", "--all", "--yes")
    assert "15 letters, 1 of them open: were deleted" in all_gone.out
    assert await positions(commands, "--all") == []
    # A new letter is open: the stored offsets are of earlier ones.
    await put_letters(stage, [letter(78)])
    assert await positions(commands) == ["0:11"]


@pytest.mark.parametrize("store", ["memory", "off"])
async def test_a_redriven_order_is_read_again_from_the_beginning(
    stage: Stage, tmp_path: Path, store: str
) -> None:
    """The original and its copy keep one key; with the table neither is sent again."""
    async with ScriptedSink() as sink:
        sink.script = lambda request: Answer(422)
        (published,) = await stage.publish([order(1)])
        async with WorkerProcess(tmp_path, stage, sink.url, deliveries_store=store) as worker:
            await worker.wait_log("Publishing failed message to DLQ")
            sink.script = lambda request: Answer()
            await worker.wait_until(stage.all_committed, what="to commit")
            await relay_on(stage, tmp_path)("dlq", "redrive", "--all", "--yes")
            await sink.wait_for(lambda s: len(s.accepted) == 1, timeout=60)
            await worker.wait_until(stage.all_committed, what="to commit the redriven one")
            assert await worker.stop() == 0
            await stage.commit({published.partition: Committed(0, "")})
            worker.start()
            await worker.wait_until(stage.all_committed, what="to read both again")
        assert sink.accepted_keys == [published.event_id] * (1 if store == "memory" else 3)


async def test_recreated_and_missing_topics(kafka: RealKafka, stage: Stage, tmp_path: Path) -> None:
    """Redrives from a deleted topic do not count for the new one; a missing topic is one line."""
    commands = relay_on(stage, tmp_path)
    await put_letters(stage, [letter(n) for n in range(3)])
    await commands("dlq", "redrive", "--all", "--yes")
    await Administration(stage).delete_topic(stage.dlq_topic)
    await asyncio.to_thread(kafka.create_topic, stage.dlq_topic, 3)
    await put_letters(stage, [letter(7)])
    assert await positions(commands) == ["0:0"]
    elsewhere = relay_on(replace(stage, dlq_topic=f"{stage.dlq_topic}.none"), tmp_path)
    line = (await elsewhere("dlq", "list", statuses=(1,))).only_line
    assert f"topic {stage.dlq_topic}.none cannot be used" in line


async def test_two_at_once(stage: Stage, tmp_path: Path) -> None:
    """The second redrive is refused; each letter is redriven once."""
    commands = relay_on(stage, tmp_path)
    await put_letters(stage, [letter(n) for n in range(LETTERS)])
    first = await started(commands, rate=3)
    second = await commands("dlq", "redrive", "--all", "--yes", statuses=(1,))
    assert "another dlq redrive works on it" in second.only_line
    out, err = await first.communicate()
    assert first.returncode == 0
    # This folder has no database.
    (remark,) = err.splitlines()
    assert remark.startswith(b"The audit log was not written")
    assert out.count(b'"redriven"') == LETTERS  # minus the line read before, plus the summary
    assert await redriven(stage) == {f"paid-{n}": 1 for n in range(LETTERS)}


async def test_two_at_the_same_moment(stage: Stage, tmp_path: Path) -> None:
    """One or both may be refused; no letter is redriven twice; a third run redrives the rest."""
    commands = relay_on(stage, tmp_path)
    await put_letters(stage, [letter(n, partition=n % 3) for n in range(LETTERS)])
    both: list[Ended] = await asyncio.gather(
        *(commands("dlq", "redrive", "--all", "--yes", statuses=(0, 1)) for _ in range(2))
    )
    for ended in both:
        if ended.status:
            assert "another dlq redrive" in ended.err + ended.out
    await commands("dlq", "redrive", "--all", "--yes")
    assert await redriven(stage) == {f"paid-{n}": 1 for n in range(LETTERS)}


async def test_a_stopped_or_killed_redrive_continues(stage: Stage, tmp_path: Path) -> None:
    """After SIGTERM no letter is redriven twice; after a kill at most one batch is."""
    commands = relay_on(stage, tmp_path)
    await put_letters(stage, [letter(n) for n in range(LETTERS)])
    ended = await end_by_signal(await started(commands), signal.SIGTERM)
    assert ended.status == 128 + signal.SIGTERM
    assert "stopped by a signal" in ended.objects[-1]["stopped"]
    stopped_at = await redriven(stage)
    assert 0 < len(stopped_at) < LETTERS
    assert len(await positions(commands)) == LETTERS - len(stopped_at)

    killed = await started(commands)
    killed.kill()
    await killed.communicate()
    # This waits until Kafka has removed the dead member.
    await commands("dlq", "redrive", "--all", "--yes")
    counts = await redriven(stage)
    assert set(counts) == {f"paid-{n}" for n in range(LETTERS)}
    assert sum(counts.values()) <= LETTERS + 2  # at 10 a second a batch is of 2
    assert await positions(commands) == []


async def started(commands: Commands, rate: int = 10) -> asyncio.subprocess.Process:
    """A slow redrive of all letters, after the first."""
    process = await commands.start(
        "dlq", "redrive", "--all", "--yes", "--rate", str(rate), "--json"
    )
    assert process.stdout is not None
    assert b'"redriven"' in await process.stdout.readline()
    return process
