"""Helpers of this folder for a running worker."""

import json
from typing import Any

import aiohttp

from tests.support.kafka.ports import LOOPBACK
from tests.support.orders import order_value
from tests.support.secure_kafka import CLIENT_SECRET, KEY_PASSWORD, PASSWORD
from tests.support.worker import WorkerProcess

# A start and a stop log about 80 lines; a flood has hundreds.
MOST_LINES = 150


async def hand_in(worker: WorkerProcess, order_id: int) -> dict[str, Any]:
    """Post an order; returns the answer."""
    async with (
        aiohttp.ClientSession() as http,
        http.post(
            f"http://{LOOPBACK}:{worker.web_port}/order-paid",
            data=order_value(order_id),
            headers={"Content-Type": "application/json"},
        ) as answer,
    ):
        return dict(json.loads(await answer.text()))


def well_behaved(worker: WorkerProcess) -> None:
    """Check that a worker's log is short, and has neither a stack trace nor a secret."""
    text = worker.log_text()
    assert "Traceback" not in text, text
    assert len(text.splitlines()) <= MOST_LINES, text
    for secret in (PASSWORD, CLIENT_SECRET, KEY_PASSWORD, "hunter2"):
        assert secret not in text
