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
from tests.support.worker import NewWorker, consumers_in

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(unavailable_reason() is not None, reason=str(unavailable_reason())),
]

SEEN_MS = 60_000
SCRIPT = "<img src=x onerror=\"document.title='broken'\">"
INJECT = """() => {
    const script = document.createElement("script");
    script.textContent = "document.title = 'broken'";
    document.body.append(script);
}"""


FITS = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"


async def shows(page: Page, figure: str, text: str | re.Pattern[str]) -> None:
    """Wait until a figure has this value."""
    found = page.locator(f"dt:text-is('{figure}') + dd").first
    await expect(found).to_have_text(text, timeout=SEEN_MS)


async def says(page: Page, text: str) -> None:
    """Wait until one of the lines at the top says so."""
    await expect(page.locator(".verdicts")).to_contain_text(text, timeout=SEEN_MS)


async def does(page: Page, text: str) -> None:
    """Wait until the line of the target says so, on a phone and on a wide screen, too."""
    await expect(page.locator(".target")).to_contain_text(text, timeout=SEEN_MS)
    for width in (390, 1920, 1280):
        await page.set_viewport_size({"width": width, "height": 900})
        assert await page.evaluate(FITS), f"{text!r} is wider than {width} px"


async def probe(page: Page, token: str = "") -> None:
    """Fill in the dialog of the button, and send it."""
    await page.get_by_role("button", name="Probe now").click()
    await page.get_by_label("Your name").fill("Ada")
    await page.get_by_label("API_TOKEN").fill(token)
    await page.get_by_role("button", name="Do it").click()


async def test_the_console_shows_what_is_delivered_and_what_became_of_an_order(
    stage: Stage, sink: ScriptedSink, new_worker: NewWorker
) -> None:
    """Figures, partitions, dead letters; the order is on a page of its own; texts stay texts."""
    sink.script = lambda request: Answer(
        422 if request.order_id == 7 else 200, body=SCRIPT.encode()
    )
    async with new_worker() as worker, browser_page() as (page, errors):
        await worker.wait_ready()
        await page.goto(f"http://127.0.0.1:{worker.web_port}/worker")
        await says(page, "Records are delivered, and nothing waits for a person.")
        await stage.publish([order(7), *orders(40, first=100), Order(b"8", b"no JSON")])
        await sink.wait_for(lambda s: len(s.accepted) == 40, timeout=60)
        await eventually(stage.all_committed, 20, "everything is committed")
        await shows(page, "delivered", "40")
        await shows(page, "dead-lettered", "2")
        await shows(page, "breaker", "closed")
        await shows(page, "lag", "0")
        await shows(page, "invalid_json", "1")
        await expect(page.locator("#content")).to_contain_text(f":{worker.web_port}, group")
        partitions = page.locator("section", has=page.get_by_role("heading", name="Partitions"))
        await expect(partitions.locator("tbody tr")).to_have_count(len(await stage.ends()))
        await says(page, "2 dead letters wait for a person, the oldest for")

        await page.get_by_role("link", name="Find an order").click()
        await page.get_by_label("order id").fill("7")
        await page.keyboard.press("Enter")
        await expect(page.locator("#content")).to_contain_text("dead_lettered")
        await expect(page.locator("#content")).to_contain_text(SCRIPT)
        await expect(page).to_have_title("Order 7 · Order relay")
        assert errors == []

        await page.evaluate(INJECT)
        assert any("Content Security Policy" in text for text in errors)
        await expect(page).to_have_title("Order 7 · Order relay")


COUPONS = """
from order_relay import Consumer, Reject

coupons = Consumer("coupons", topic="orders", group="coupons")


@coupons.handler
async def issue(order, delivery):
    if order.orderId == 3:
        raise Reject("no coupon for <b>three</b>")
"""


async def test_the_console_shows_one_consumer_or_another(
    embedded: EmbeddedKafka, stage: Stage, tmp_path: Path, new_worker: NewWorker
) -> None:
    """The first one at first, the other by its link, with figures of its own."""
    embedded.create_topic(f"{stage.topic}.coupons.DLQ")
    async with (
        new_worker(
            consumer_folders=consumers_in(tmp_path, "coupons.py", COUPONS),
            coupons_topic=stage.topic,
            coupons_group=f"{stage.group_id}-coupons",
        ) as worker,
        browser_page() as (page, errors),
    ):
        await worker.wait_ready()
        await page.goto(f"http://127.0.0.1:{worker.web_port}/worker")
        await stage.publish(orders(5))
        consumers = page.get_by_role("navigation", name="Consumers").get_by_role("link")
        await expect(consumers).to_have_text(["order_logging", "coupons"], timeout=SEEN_MS)
        await shows(page, "delivered", "5")
        await shows(page, "dead-lettered", "0")
        await expect(consumers.and_(page.locator("[aria-current=page]"))).to_have_text(
            "order_logging"
        )

        await consumers.nth(1).click()
        await shows(page, "delivered", "4")
        await shows(page, "dead-lettered", "1")
        await expect(consumers.and_(page.locator("[aria-current=page]"))).to_have_text("coupons")
        for width in (390, 1920, 1280):
            await page.set_viewport_size({"width": width, "height": 900})
            assert await page.evaluate(FITS)

        await page.goto(f"http://127.0.0.1:{worker.web_port}/worker?consumer=nobody")
        await says(page, "consumer 'nobody' is not one of this worker's: order_logging, coupons")
        assert [text for text in errors if "404" not in text] == []


async def test_the_console_says_what_the_logger_does(
    stage: Stage, sink: ScriptedSink, new_worker: NewWorker
) -> None:
    """Each state in one line at the top, which fits a phone and a wide screen."""
    async with (
        new_worker(breaker_failure_threshold=3, breaker_probe_interval_seconds=600) as worker,
        browser_page() as (page, errors),
    ):
        await worker.wait_ready()
        await page.goto(f"http://127.0.0.1:{worker.web_port}/worker")
        await does(page, "works for")
        await expect(page.get_by_role("button", name="Probe now")).to_be_hidden()

        sink.fail_next(1, 500, body=SCRIPT.encode())
        await stage.publish(orders(20))
        await does(page, "fails for some records for")
        await does(page, "<img src=x onerror=")
        await says(page, "The target fails for some records")

        # Until the page shows it: one 429 among many answers would be over too soon.
        sink.script = lambda request: Answer(429, headers={"Retry-After": "1"}, body=b"slow down")
        await stage.publish(orders(20, first=100))
        await does(page, "throttles for")
        await does(page, "last said 429 'slow down'")
        await says(page, "The target throttles")
        await expect(page.get_by_role("button", name="Probe now")).to_be_hidden()

        sink.script = lambda request: Answer(401, body=("no token " * 40).encode())
        await stage.publish(orders(20, first=200))
        await does(page, "refuses us for")
        await says(page, "refuses our token, URL or certificate")
        await expect(page.get_by_role("button", name="Probe now")).to_be_visible()

        await sink.down()
        await probe(page)
        await expect(page.locator("#job")).to_contain_text("probe", timeout=SEEN_MS)
        await does(page, "is down for")
        await does(page, "next probe in")
        await says(page, "The target fails: records wait in Kafka, none is given up.")

        # A pause holds back probes, too.
        answer = await page.request.post(
            f"http://127.0.0.1:{worker.web_port}/consumers/pause",
            data={"consumer": "order_logging", "dry_run": False, "actor": "Ada"},
        )
        assert answer.ok
        await says(page, "Paused: nothing is sent")
        await expect(page.get_by_role("button", name="Probe now")).to_be_hidden()
        await page.goto(f"http://127.0.0.1:{worker.web_port}/consumers")
        await expect(page.get_by_role("button", name="Resume")).to_be_visible()
        await expect(page.get_by_role("button", name="Probe now")).to_have_count(0)
        assert errors == []


async def test_a_probe_from_the_console(
    stage: Stage, sink: ScriptedSink, new_worker: NewWorker
) -> None:
    """By keyboard alone: the page asks for the token, and shows the worker's answer as text."""
    await sink.down()
    await stage.publish(orders(40))
    async with (
        new_worker(
            breaker_failure_threshold=3,
            breaker_probe_interval_seconds=600,
            max_in_flight=8,  # the others wait, and were never sent
            api_token="s3cret",
        ) as worker,
        browser_page() as (page, _),
    ):
        await worker.wait_log("Breaker open")
        await page.goto(f"http://127.0.0.1:{worker.web_port}/worker")
        # Its first probes, with records that were never sent, go after a second each.
        await shows(page, "failed probes", re.compile(r"^([6-9]|\d\d+)$"))
        await page.get_by_role("button", name="Probe now").focus()
        await page.keyboard.press("Enter")
        await page.get_by_label("Your name").fill("Ada")
        await page.keyboard.press("Enter")
        answer = page.locator("#confirm-answer")
        await expect(answer).to_contain_text("API_TOKEN", timeout=SEEN_MS)
        await sink.up()
        await page.get_by_label("API_TOKEN").fill("s3cret")
        await page.keyboard.press("Enter")
        await expect(page.locator("#job")).to_contain_text("probe was done on this worker")
        await sink.wait_for(lambda s: len(s.accepted) == 40, timeout=60)
        await expect(page.get_by_role("button", name="Probe now")).to_have_count(0)
        await does(page, "first attempts fail")
        assert "s3cret" not in await page.content()
        audit = await page.request.get(f"http://127.0.0.1:{worker.web_port}/audit")
        assert "consumer: probe" in await audit.text()
        worker.kill9()
        stale = page.get_by_text("No connection to this worker")
        await expect(stale).to_be_visible(timeout=SEEN_MS)
