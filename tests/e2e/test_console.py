"""The console in a real browser, over the shipped worker."""

import re
from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from tests.support.browser import browser_page, unavailable_reason
from tests.support.embedded import EmbeddedKafka
from tests.support.orders import Order, order, orders
from tests.support.sink import Answer, ScriptedSink
from tests.support.stage import Stage
from tests.support.waiting import eventually
from tests.support.worker import WorkerProcess

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(unavailable_reason() is not None, reason=str(unavailable_reason())),
]

# Of Kafka a worker says after half a minute that it does not answer.
SEEN_MS = 60_000
SCRIPT = "<img src=x onerror=\"document.title='broken'\">"
INJECT = """() => {
    const script = document.createElement("script");
    script.textContent = "document.title = 'broken'";
    document.body.append(script);
}"""


async def shows(page: Page, figure: str, text: str | re.Pattern[str]) -> None:
    """Wait until a figure stands there."""
    await expect(page.locator(f'[data-figure="{figure}"]')).to_have_text(text, timeout=SEEN_MS)


async def says(page: Page, text: str) -> None:
    """Wait until one of the lines at the top says so."""
    await expect(page.locator("#verdicts")).to_contain_text(text, timeout=SEEN_MS)


async def look_up(page: Page, order_id: str) -> None:
    """Ask what became of an order."""
    await page.get_by_label("order id").fill(order_id)
    await page.get_by_role("button", name="Look up").click()


async def test_the_console_shows_what_is_delivered_and_what_became_of_an_order(
    stage: Stage, sink: ScriptedSink, tmp_path: Path
) -> None:
    """Figures, partitions, dead letters, orders known and not; what others wrote stays text."""
    sink.script = lambda request: Answer(
        422 if request.order_id == 7 else 200, body=SCRIPT.encode()
    )
    async with WorkerProcess(tmp_path, stage, sink.url) as worker, browser_page() as (page, errors):
        await worker.wait_ready()
        await page.goto(f"http://127.0.0.1:{worker.web_port}/")
        await says(page, "nothing here is at risk")
        await stage.publish([order(7), *orders(40, first=100), Order(b"8", b"no JSON")])
        await sink.wait_for(lambda s: len(s.accepted) == 40, timeout=60)
        await eventually(stage.all_committed, 20, "everything is committed")
        await shows(page, "deliveries.delivered", "40")
        await shows(page, "deliveries.dead_lettered", "2")
        await shows(page, "breaker.state", "closed")
        await shows(page, "worker.url", re.compile(f":{worker.web_port}$"))
        await expect(page.locator("#lag")).to_have_text("0", timeout=SEEN_MS)
        await expect(page.locator("#partitions tr")).to_have_count(len(await stage.ends()))
        await expect(page.locator("#dead-letters")).to_contain_text("invalid_json1")
        await says(page, "nothing here is at risk")
        await says(page, "Dead letters since this worker's start: 2. OrderRelayDeadLetters")

        await look_up(page, "107")
        await expect(page.locator("#order-fields")).to_contain_text("statedelivered")
        await look_up(page, "7")
        await expect(page.locator("#order-fields")).to_contain_text("statedead_lettered")
        await expect(page.locator("#order-fields")).to_contain_text(SCRIPT)
        await look_up(page, "4711")
        await expect(page.locator("#order-answer")).to_contain_text("4711")
        await expect(page.locator("#order-fields")).to_be_empty()
        await expect(page).to_have_title("Order relay")
        # Chromium itself reports the 404 of the order that is not known.
        assert [text for text in errors if "404" not in text] == []

        await page.evaluate(INJECT)
        assert any("Content Security Policy" in text for text in errors)
        await expect(page).to_have_title("Order relay")


async def test_the_console_tells_what_is_wrong(
    fragile: EmbeddedKafka, sink: ScriptedSink, tmp_path: Path
) -> None:
    """An outage of the logger, of Kafka, and the end of the worker; and that they are over."""
    stage = fragile.stage()
    await stage.publish(orders(30))
    await sink.down()
    async with (
        WorkerProcess(tmp_path, stage, sink.url, breaker_failure_threshold=3) as worker,
        browser_page() as (page, _),
    ):
        await worker.wait_log("Breaker open")
        await page.goto(f"http://127.0.0.1:{worker.web_port}/")
        await says(page, "The external logger fails: events wait in Kafka, none is given up.")
        await sink.up()
        await shows(page, "deliveries.delivered", "30")
        await says(page, "nothing here is at risk")
        fragile.down()
        await says(page, "Kafka does not answer this worker. OrderRelayKafkaUnreachable")
        worker.kill9()
        await says(page, "This worker does not answer")
