"""A target with a certificate that is not trusted."""

import ssl
from pathlib import Path

import trustme

from tests.support.embedded import EmbeddedKafka
from tests.support.kafka.ports import LOOPBACK
from tests.support.orders import order
from tests.support.sink import ScriptedSink
from tests.support.waiting import eventually
from tests.support.worker import WorkerProcess


async def test_a_wrong_certificate_is_an_outage(embedded: EmbeddedKafka, tmp_path: Path) -> None:
    """Nothing is dead-lettered, the log has the reason, and the order is delivered later."""
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(LOOPBACK).configure_cert(context)
    other, right = tmp_path / "other.pem", tmp_path / "right.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    authority.cert_pem.write_to_path(str(right))
    stage = embedded.stage()
    await stage.publish([order(1)])
    async with ScriptedSink(tls=context) as sink:
        async with WorkerProcess(
            tmp_path, stage, sink.url, external_logger_ca_file=other, consumer_retry_max_attempts=0,
            breaker_failure_threshold=3,
        ) as worker:  # fmt: skip
            await worker.wait_log("Breaker open: the target fails")
            assert await worker.stop() == 0
        for line in worker.log_lines("Retrying message"):
            assert "certificate verify failed" in line
        assert not sink.requests
        assert not await stage.dead_letters()
        async with WorkerProcess(
            tmp_path, stage, sink.url, name="mended", external_logger_ca_file=right
        ) as mended:
            await eventually(lambda: sink.accepted, 60, lambda: "not delivered")
            assert await mended.stop() == 0
    assert "Traceback" not in worker.log_text()
