"""The shipped worker begins: with wrong settings, without Kafka, on a port in use."""

import asyncio
import socket
from pathlib import Path

import pytest

from tests.support import forks
from tests.support.embedded import EmbeddedKafka
from tests.support.kafka.ports import LOOPBACK
from tests.support.orders import event_ids, orders
from tests.support.sink import ScriptedSink
from tests.support.stage import Stage
from tests.support.worker import WorkerProcess

pytestmark = pytest.mark.e2e


@pytest.fixture(autouse=True)
def from_the_first_import_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are started as users start them, not as forks."""
    monkeypatch.setattr(forks, "POSSIBLE", False)


WRONG = {
    "BREAKER_FAILURE_THRESHOLD": "abc",
    "BREAKER_PROBE_INTERVAL_SECONDS": "-5",
    "CONSUMER_RETRY_INITIAL_INTERVAL_MS": "-1",
    "EXTERNAL_LOGGER_MAX_RATE": "nan",
    "EXTERNAL_LOGGER_URL": "not a url",
    "KAFKA_SECURITY_PROTOCOL": "TLS",
    "KAFKA_BOOTSTRAP_SERVERS": "localhost",
    "WEB_HOST": "http://0.0.0.0",
    "WEB_PORT": "70000",
}


async def test_a_wrong_setting_ends_the_start_with_one_line(
    stage: Stage, sink: ScriptedSink, tmp_path: Path
) -> None:
    """One line names the variable, its value and what is allowed; the status is not 0."""
    # Two at a time: they only have to import, but the machine may be small.
    gate = asyncio.Semaphore(2)

    async def refused(name: str, value: str) -> None:
        settings = {name.lower(): value}
        async with (
            gate,
            WorkerProcess(tmp_path, stage, sink.url, name=name, **settings) as worker,
        ):
            status = await worker.wait(60)
        (line,) = worker.log_text().splitlines()
        assert status not in (0, None), line
        assert name in line
        assert value in line
        assert "invalid settings" in line

    async with asyncio.TaskGroup() as group:
        for name, value in WRONG.items():
            group.create_task(refused(name, value))
    assert not sink.requests


async def test_several_wrong_settings_are_named_in_the_one_line(
    stage: Stage, sink: ScriptedSink, tmp_path: Path
) -> None:
    """All that is wrong is said at once, also what comes from .env; secrets are not shown."""
    await asyncio.to_thread(
        (tmp_path / ".env").write_text,
        "MAX_IN_FLIGHT=many\nKAFKA_SECURITY_PROTOCOL=SASL_SSL\nKAFKA_SASL_PASSWORD=hush-hush\n",
    )
    async with WorkerProcess(tmp_path, stage, sink.url, breaker_failure_threshold="-1") as worker:
        assert await worker.wait(60) != 0
    (line,) = worker.log_text().splitlines()
    assert "MAX_IN_FLIGHT" in line
    assert "many" in line
    assert "BREAKER_FAILURE_THRESHOLD" in line
    assert "hush-hush" not in line


async def test_a_web_port_in_use_ends_the_start_with_one_line(
    stage: Stage, sink: ScriptedSink, tmp_path: Path
) -> None:
    """The line names the port; the worker neither hangs nor delivers without its web server."""
    await stage.publish(orders(1))
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        async with WorkerProcess(tmp_path, stage, sink.url, web_port=port) as worker:
            assert await worker.wait(60) != 0
    (line,) = worker.log_lines(f"WEB_PORT={port}")
    assert "cannot serve" in line
    assert "Traceback" not in worker.log_text()
    assert not sink.requests


async def test_kafka_that_is_missing_at_the_start_is_waited_for(
    fragile: EmbeddedKafka, sink: ScriptedSink, tmp_path: Path
) -> None:
    """It says so in one line, answers probes, keeps trying, and delivers when Kafka comes."""
    stage = fragile.stage()
    published = await stage.publish(orders(50))
    fragile.down()
    async with WorkerProcess(tmp_path, stage, sink.url) as worker:
        await worker.wait_log("Kafka cannot be reached")
        await worker.wait_until(worker.live, 30, "to be alive")
        assert not await worker.ready()
        fragile.up()
        await sink.wait_for(lambda s: len(s.accepted) == len(published), timeout=60)
        await worker.wait_ready()
        assert await worker.stop() == 0
    assert sorted(sink.accepted_keys) == sorted(event_ids(published))
    # Replay, too, says once that it waits for Kafka.
    assert len(worker.log_lines("Kafka cannot be reached at KAFKA_BOOTSTRAP_SERVERS=")) == 1
    assert "Traceback" not in worker.log_text()


async def test_sigterm_while_kafka_is_missing_ends_the_worker(
    fragile: EmbeddedKafka, sink: ScriptedSink, tmp_path: Path
) -> None:
    """A worker that still waits for Kafka ends promptly and cleanly when told to."""
    stage = fragile.stage()
    fragile.down()
    async with WorkerProcess(tmp_path, stage, sink.url) as worker:
        await worker.wait_log("Kafka cannot be reached")
        worker.sigterm()
        assert await worker.wait(15) == 0
    assert "Traceback" not in worker.log_text()


async def test_a_data_folder_that_is_none_ends_the_start_with_one_line(
    stage: Stage, sink: ScriptedSink, tmp_path: Path
) -> None:
    """RocksDB needs a folder; without RocksDB nobody looks at the setting."""
    wrong = tmp_path / "a-file"
    await asyncio.to_thread(wrong.write_text, "")
    async with WorkerProcess(
        tmp_path, stage, sink.url, data_dir=wrong, deliveries_store="rocksdb"
    ) as worker:
        assert await worker.wait(60) == 1
        (line,) = worker.log_lines("DATA_DIR")
        assert str(wrong) in line
        assert "must be a folder that can be written to" in line
        assert "Traceback" not in worker.log_text()
