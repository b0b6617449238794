"""The shipped worker starts with wrong settings, without Kafka, or on a port in use."""

import asyncio
import json
import socket
from pathlib import Path

import pytest

from tests.support.embedded import EmbeddedKafka
from tests.support.kafka.ports import LOOPBACK
from tests.support.orders import orders
from tests.support.sink import ScriptedSink
from tests.support.stage import Stage
from tests.support.worker import NewWorker, WorkerProcess

pytestmark = pytest.mark.e2e


async def test_several_wrong_settings_are_named_in_the_one_line(
    tmp_path: Path, new_worker: NewWorker
) -> None:
    """One line names all wrong settings, those of .env included, and shows no secret."""
    await asyncio.to_thread(
        (tmp_path / ".env").write_text,
        "MAX_IN_FLIGHT=many\nKAFKA_SECURITY_PROTOCOL=SASL_SSL\nKAFKA_SASL_PASSWORD=hush-hush\n",
    )
    worker = new_worker(breaker_failure_threshold="-1")
    async with worker.in_new_interpreter():
        assert await worker.wait(60) != 0
    (line,) = worker.log_text().splitlines()
    assert "MAX_IN_FLIGHT" in line
    assert "many" in line
    assert "BREAKER_FAILURE_THRESHOLD" in line
    assert "hush-hush" not in line


@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_a_web_port_in_use_ends_the_start_with_one_line(
    stage: Stage, sink: ScriptedSink, new_worker: NewWorker, log_format: str
) -> None:
    """The line names the port; the worker neither hangs nor delivers without its web server."""
    await stage.publish(orders(1))
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        async with new_worker(web_port=port, log_format=log_format) as worker:
            assert await worker.wait(60) == 1
    (line,) = worker.log_lines(f"WEB_PORT={port}")
    assert "cannot serve" in line
    assert log_format == "text" or json.loads(line)["level"] == "CRITICAL"
    assert "Traceback" not in worker.log_text()
    assert not sink.requests


async def test_sigterm_while_kafka_is_missing_ends_the_worker(
    fragile: EmbeddedKafka, sink: ScriptedSink, tmp_path: Path
) -> None:
    """A worker that still waits for Kafka is live, not ready, and ends promptly on SIGTERM."""
    stage = fragile.stage()
    fragile.down()
    async with WorkerProcess(tmp_path, stage, sink.url).in_new_interpreter() as worker:
        await worker.wait_log("Kafka cannot be reached")
        await worker.wait_until(worker.live, 30, "to be alive")
        assert not await worker.ready()
        figures = await worker.json("/stats")
        assert (figures["kafka_up"], figures["partitions"]) == (False, [])
        worker.sigterm()
        assert await worker.wait(15) == 0
    assert "Traceback" not in worker.log_text()


async def test_a_data_folder_that_is_a_file_ends_the_start_with_one_line(
    tmp_path: Path, new_worker: NewWorker
) -> None:
    """With RocksDB, the line names DATA_DIR and the file at its path."""
    wrong = tmp_path / "a-file"
    await asyncio.to_thread(wrong.write_text, "")
    async with new_worker(data_dir=wrong, deliveries_store="rocksdb") as worker:
        assert await worker.wait(60) == 1
        (line,) = worker.log_lines("DATA_DIR")
        assert str(wrong) in line
        assert "must be a folder that can be written to" in line
        assert "Traceback" not in worker.log_text()
