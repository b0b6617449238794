"""A mistake in a consumer's file or in a setting ends the start with one line."""

import json
from pathlib import Path

import pytest

from tests.support.stage import Stage
from tests.support.worker import WorkerProcess, consumers_in

pytestmark = pytest.mark.e2e

NO_KAFKA = Stage("127.0.0.1:1", "order-paid-events", "order-paid-events.DLQ", "group")
CONSUMER = """
from order_relay import Consumer, OrderPaid
coupons = Consumer("coupons", topic="orders", group="coupon-group", event=OrderPaid)
"""
AGENT = """
from app import app

@app.agent(app.topic("orders"))
async def points(orders): ...
"""
UNKNOWN_FIELD = """
import msgspec
from order_relay import Consumer, HttpPost

class Paid(msgspec.Struct):
    order: "Order"

points = Consumer("points", topic="orders", group="points", event=Paid, handler=HttpPost("http://x"))
"""


@pytest.mark.parametrize("log_format", ["text", "json"])
@pytest.mark.parametrize(
    ("file", "environment", "said"),
    [
        ("\nimport no_such_module", {},
         "a.py cannot be imported: ModuleNotFoundError: No module named 'no_such_module' (line 2)"),
        (CONSUMER, {}, "consumer coupons has no handler"),
        (UNKNOWN_FIELD, {}, "consumer points: values cannot be decoded to event=Paid: NameError: "
         "name 'Order' is not defined"),
        ("async def register(app): ...", {},
         "consumers/a.py: register must be a function (app), without async"),
        ("def register(): ...", {}, "consumers/a.py: register(app) failed: TypeError: "),
        ("def register(app): 1 / 0", {},
         "consumers/a.py: register(app) failed: ZeroDivisionError: division by zero (line 1)"),
        (AGENT, {}, "the Faust agent 'points' cannot run here"),
        ("", {"CONSUMERS": "cupons"},
         "CONSUMERS='cupons' must name consumers, separated by commas, of these: order_logging"),
        ("", {"MAX_IN_FLIGHT": "0"},
         "invalid settings: MAX_IN_FLIGHT='0' must be greater than or equal to 1"),
    ],
    ids=["import", "no handler", "event", "async register", "form of register", "register",
         "agent", "consumers", "setting"],
)  # fmt: skip
async def test_a_mistake_ends_the_start_with_one_line(
    file: str, environment: dict[str, str], said: str, log_format: str, tmp_path: Path
) -> None:
    """It says what is wrong and where, as JSON where the log is; there is no stack trace."""
    consumers_in(tmp_path, "a.py", file)
    settings = {"consumer_folders": "consumers", "log_format": log_format, **environment}
    async with WorkerProcess(tmp_path, NO_KAFKA, "http://127.0.0.1:1", **settings) as worker:
        assert await worker.wait() == 1
    (line,) = worker.log_text().splitlines()
    if log_format == "json":
        fields = json.loads(line)
        assert fields["level"] == "CRITICAL"
        line = fields["message"]
    assert said in line
