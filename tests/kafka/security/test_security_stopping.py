"""A worker with TLS stops in time, even if the brokers do not answer."""

from pathlib import Path

import pytest

from tests.support.orders import order
from tests.support.secure_kafka import SecureKafka
from tests.support.sink import ScriptedSink
from tests.support.stage import Stage
from tests.support.worker import WorkerProcess

LIMIT_SECONDS = 60.0


@pytest.mark.harms_brokers
async def test_brokers_that_do_not_answer_do_not_delay_the_stop(
    secure: SecureKafka, stage: Stage, tmp_path: Path
) -> None:
    """With frozen brokers, it waits neither for leaving the group nor for closing TLS."""
    async with (
        ScriptedSink() as sink,
        WorkerProcess(tmp_path, stage, sink.url, **secure.certificate()) as worker,
    ):
        await worker.wait_ready()
        await stage.publish([order(1)])
        await sink.wait_for(lambda s: len(s.accepted) == 1, LIMIT_SECONDS)
        try:
            for broker_id in (1, 2, 3):
                secure.kafka.freeze(broker_id)
            assert await worker.stop() == 0
        finally:
            secure.kafka.revive()
        assert "Shutdown took over" not in worker.log_text()
