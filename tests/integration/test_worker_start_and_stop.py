"""The application in the test's loop: stopped while it starts, and with a crashing consumer."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from agents.fallback_replay import register
from order_relay import Consumer, Delivery, OrderPaid
from order_relay.dead_letters.index import LetterIndex
from order_relay.fallback.sql.audit_log import PAUSED, RESUMED, AuditEntry
from order_relay.settings import Settings
from order_relay.settings.consumers import configure
from order_relay.worker import relay_app
from order_relay.worker.relay_app import RelayApp
from tests.support.embedded import EmbeddedKafka
from tests.support.kafka.ports import free_ports
from tests.support.waiting import eventually


async def handle(order: OrderPaid, delivery: Delivery) -> None:
    """A handler."""


class Topics:
    """A fake Kafka: it answers on request, and never to a consumer."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.consumers_asked = asyncio.Event()
        self.answer = asyncio.Event()

    async def wait_until_ready(
        self, pause: Callable[[float], Awaitable[bool]], consumer: Settings | None = None
    ) -> bool:
        """Wait for ``answer``, or for ever."""
        if consumer is not None:
            self.consumers_asked.set()
            await asyncio.Event().wait()
        self.asked.set()
        await self.answer.wait()
        return True


@pytest.fixture
async def application(
    embedded: EmbeddedKafka, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[RelayApp]:
    """An application with two consumers; stopped afterwards."""
    monkeypatch.chdir(tmp_path)
    stage = embedded.stage()
    settings = stage.settings(
        web_port=free_ports(1)[0], database_url=f"sqlite+aiosqlite:///{tmp_path}/relay.db"
    )
    filters = {handler: list(handler.filters) for handler in logging.getLogger().handlers}
    app = RelayApp(settings)
    consumers = configure(
        [
            Consumer(
                name,
                topic=stage.topic,
                group=f"{stage.group_id}-{name}",
                event=OrderPaid,
                handler=handle,
            )
            for name in ("coupons", "points")
        ],
        settings,
    )
    app.run_consumers(consumers, consumers)
    yield app
    await app.stop()
    for handler, before in filters.items():  # the handlers are those of all tests
        handler.filters = before
    for runtime in app._runtimes:
        thread: Any = runtime.app.reader._thread
        if not runtime.app.started:
            thread.thread_loop.close()  # it never ran


async def begin(application: RelayApp) -> tuple[Topics, asyncio.Task[None]]:
    """Start the application until it waits for Kafka."""
    topics = Topics()
    application._topics = topics  # type: ignore[assignment]
    starting = asyncio.create_task(application.start())
    await asyncio.wait_for(topics.asked.wait(), 60)
    return topics, starting


async def test_a_stop_during_the_start_begins_no_consumer(application: RelayApp) -> None:
    """Kafka answers after the stop: no consumer joins a group that it would not leave."""
    topics, starting = await begin(application)
    await application.stop()
    topics.answer.set()
    await asyncio.wait_for(starting, 60)
    assert application._starting == []
    assert not any(runtime.app.started for runtime in application._runtimes)


async def test_what_crashes_a_consumer_crashes_the_worker(application: RelayApp) -> None:
    """The worker crashes with the consumer's error."""
    topics, starting = await begin(application)
    fault = RuntimeError("Kafka's client ended")
    await application._runtimes[1].app.reader.crash(fault)
    assert application.crash_reason is fault
    topics.answer.set()
    await asyncio.wait_for(starting, 60)
    assert application._starting == []


async def test_a_crash_ends_the_worker_though_another_consumer_is_still_starting(
    application: RelayApp,
) -> None:
    """The start does not wait."""
    topics, starting = await begin(application)
    topics.answer.set()
    await asyncio.wait_for(topics.consumers_asked.wait(), 60)
    await application._runtimes[1].app.reader.crash(RuntimeError("Kafka's client ended"))
    await asyncio.wait_for(starting, 60)


async def test_a_consumer_leaves_its_group_though_another_one_still_waits_for_attempts(
    application: RelayApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its partitions are free for other workers, and its pages still answer."""
    _, starting = await begin(application)
    slow, quick = application._runtimes
    answered, left = asyncio.Event(), asyncio.Event()

    async def drain(grace_seconds: float) -> None:
        await answered.wait()

    async def stop() -> None:
        left.set()

    monkeypatch.setattr(slow, "drain", drain)
    monkeypatch.setattr(quick, "stop", stop)
    stopping = asyncio.create_task(application.stop())
    await asyncio.wait_for(left.wait(), 60)
    assert not stopping.done()
    assert await quick.open_letters.ask(LetterIndex.by_reason) == []
    answered.set()
    await asyncio.wait_for(stopping, 60)
    starting.cancel()


@pytest.mark.parametrize("error", [OSError("no session"), SystemExit("no session")])
async def test_a_task_beside_the_consumers_fails_alone(
    application: RelayApp,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    """The log has its error and name, the worker continues, and the task starts again."""
    monkeypatch.setattr(relay_app, "BACKGROUND_RESTART_SECONDS", 0.01)
    starts = []
    holds = asyncio.Event()

    async def hold_session() -> None:
        starts.append(1)
        if len(starts) <= 2:
            raise error
        holds.set()

    application.background.append(hold_session)
    await application.start()
    await asyncio.wait_for(holds.wait(), 60)
    failed = "Task beside the consumers failed, it starts again task=hold_session wait_seconds="
    assert [f"{failed}{seconds}" in caplog.text for seconds in (0.01, 0.02)] == [True, True]
    assert not application.should_stop
    assert not application.crashed


async def test_a_pause_that_did_not_reach_a_worker_is_followed(
    application: RelayApp, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As one that was frozen, or had no database at its start; its own pause is not undone."""
    monkeypatch.setattr(relay_app, "FOLLOW_PAUSES_SECONDS", 0.01)
    audit = application._audit
    await audit.write(AuditEntry("a person", PAUSED, "coupons", 1, ""))
    await application.start()
    dispatchers = {one.name: one.dispatcher for one in application._runtimes}
    coupons = dispatchers.pop("coupons")
    (other,) = dispatchers.values()
    assert coupons.paused
    other.pause(True)  # the database did not take it
    await audit.write(AuditEntry("a person", RESUMED, "coupons", 1, ""))
    await eventually(lambda: not coupons.paused, 30, "to resume")
    await audit.write(AuditEntry("a person", PAUSED, "coupons", 1, ""))
    await eventually(lambda: coupons.paused, 30, "to pause")
    assert other.paused
    told = [line for line in caplog.messages if line.startswith("Consumer ")]
    assert [line.split(" consumer=")[0] for line in told] == [
        "Consumer stays paused until it is resumed",
        "Consumer was resumed",
        "Consumer stays paused until it is resumed",
    ]


@pytest.mark.parametrize("replays", [True, False])
async def test_a_worker_without_replay_says_so(
    application: RelayApp, caplog: pytest.LogCaptureFixture, replays: bool
) -> None:
    """One warning at the start, if no file in ``agents`` replays the fallback table."""
    if replays:
        register(application)
    await application.start()
    lines = [line for line in caplog.records if "does not replay the fallback" in line.getMessage()]
    assert [line.levelname for line in lines] == ([] if replays else ["WARNING"])
