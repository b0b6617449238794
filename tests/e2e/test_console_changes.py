"""What a person changes in the console, in a real browser over the shipped worker."""

from dataclasses import replace
from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from tests.support.browser import browser_page, unavailable_reason
from tests.support.dead_letter_commands import letter, put_letters, relay_on
from tests.support.orders import order, orders
from tests.support.sink import Answer, ScriptedSink
from tests.support.stage import Stage
from tests.support.waiting import eventually
from tests.support.worker import NewWorker, WorkerProcess

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(unavailable_reason() is not None, reason=str(unavailable_reason())),
]

SEEN_MS = 60_000
TOKEN = "s3cret"


async def confirm(page: Page, *, reason: str = "", token: str = TOKEN) -> None:
    """Fill in the dialog and go on."""
    dialog = page.get_by_role("dialog")
    await dialog.get_by_label("Your name").fill("Ada")
    await dialog.get_by_label("Reason").fill(reason)
    await dialog.get_by_label("API_TOKEN").fill(token)
    await dialog.get_by_role("button", name="Do it").click()


async def test_letters_are_redriven_and_discarded(
    stage: Stage, sink: ScriptedSink, tmp_path: Path, new_worker: NewWorker
) -> None:
    """Selected letters and all that match: with confirmation, token, progress and audit log."""
    await put_letters(
        stage,
        [
            replace(letter(n, reason="rejected" if n < 3 else "tombstone"), value=order(n).value)
            for n in range(5)
        ],
    )
    async with (
        new_worker(api_token=TOKEN) as worker,
        browser_page() as (page, errors),
    ):
        await worker.wait_ready()
        base = f"http://127.0.0.1:{worker.web_port}"
        await page.goto(f"{base}/")
        await expect(page.locator("#content")).to_contain_text(
            "5 dead letters wait for a person", timeout=SEEN_MS
        )
        await page.get_by_role("link", name="5 dead letters wait").click()
        await page.wait_for_url("**/dead-letters*")  # and until its script runs
        await page.get_by_label("Select letter 0:1").check()

        await page.get_by_role("button", name="Redrive selected").click()
        dialog = page.get_by_role("dialog")
        await expect(dialog).to_contain_text("1 open letter will be published", timeout=SEEN_MS)
        await confirm(page, token="wrong")
        await expect(dialog.locator("#confirm-answer")).to_contain_text("API_TOKEN")
        assert sink.accepted == []
        await confirm(page)
        await expect(page.locator("#job")).to_contain_text("1 of 1 letters", timeout=SEEN_MS)
        await sink.wait_for(lambda s: len(s.accepted) == 1, timeout=60)
        await expect(page.locator("#content")).to_contain_text("4 letters.", timeout=SEEN_MS)

        await page.goto(f"{base}/dead-letters?reason=tombstone")
        await page.get_by_role("button", name="Discard those that match").click()
        await confirm(page)  # without a reason the form is not sent
        await expect(dialog).to_be_visible()
        await confirm(page, reason="the shop's test <b>orders</b>")
        await expect(page.locator("#job")).to_contain_text("2 of 2 letters", timeout=SEEN_MS)
        await page.goto(f"{base}/audit")
        rows = page.locator("tbody tr")
        await expect(rows).to_have_count(2)
        await expect(rows.nth(0)).to_contain_text("dead letters discarded")
        await expect(rows.nth(0)).to_contain_text("test <b>orders</b>")
        await expect(rows.nth(1)).to_contain_text("Ada (127.0.0.1)")
        assert [text for text in errors if "401" not in text] == []
        # A wrong rate is refused: without a rate all would go at once.
        await page.goto(f"{base}/dead-letters")
        await page.get_by_label("letters a second").fill("0,5")
        await page.get_by_role("button", name="Redrive all").click()
        await expect(dialog.locator("#confirm-answer")).to_contain_text("rate: Expected")
        await confirm(page)
        await expect(dialog).to_be_visible()
        await expect(dialog.locator("#confirm-answer")).to_contain_text(
            "Not done: rate: Expected `float"
        )
    # The commands do not list discarded letters either.
    left = (await relay_on(stage, tmp_path)("dlq", "list", "--json")).objects
    assert {one["order_id"] for one in left} == {0, 2}
    assert [event_id for event_id, _ in sink.accepted] == ["paid-1"]


async def test_a_paused_consumer_sends_nothing_on_any_worker(
    stage: Stage, sink: ScriptedSink, tmp_path: Path
) -> None:
    """The worker that pauses tells the other one; the pause survives restarts until resumed."""
    async with (
        WorkerProcess(tmp_path / "one", stage, sink.url, name="one", api_token=TOKEN) as one,
        WorkerProcess(tmp_path / "two", stage, sink.url, name="two", api_token=TOKEN) as two,
        browser_page() as (page, errors),
    ):
        for worker in (one, two):
            await worker.wait_ready()
        await page.goto(f"http://127.0.0.1:{one.web_port}/consumers")
        await expect(page.locator("tbody tr")).to_have_count(2, timeout=SEEN_MS)
        links = page.locator("tbody th a")
        assert {await links.nth(n).get_attribute("href") for n in range(2)} == {
            f"http://127.0.0.1:{worker.web_port}/worker?consumer=order_logging"
            for worker in (one, two)
        }
        await page.get_by_role("button", name="Pause").click()
        await confirm(page, reason="the logger is being moved")
        await expect(page.locator("#job")).to_contain_text("on all others", timeout=SEEN_MS)

        async def paused(worker: WorkerProcess) -> bool:
            return bool((await worker.json("/stats"))["paused"])

        await page.goto("about:blank")
        assert await paused(one)
        # Each has a database of its own, which keeps the pause over a restart.
        two.kill9()
        await two.start().wait_ready()
        assert await paused(two)
        await stage.publish(orders(30))
        await eventually(lambda: in_hand(one, two, 30), 60)
        assert sink.accepted == []
        told = await relay_on(stage, tmp_path, web_port=two.web_port)("status", statuses=(1,))
        assert "Paused: nothing is sent until a person resumes it" in told.out
        await page.goto(f"http://127.0.0.1:{two.web_port}/worker")
        await expect(page.locator(".verdicts")).to_contain_text("Paused: nothing is sent")
        await page.goto(f"http://127.0.0.1:{two.web_port}/consumers")
        await expect(page.locator("#content")).to_contain_text("Paused: nothing is sent")
        await page.get_by_role("button", name="Resume").click()
        await confirm(page)
        await sink.wait_for(lambda s: len(s.accepted) == 30, timeout=60)
        await expect(page.locator("#job")).to_contain_text("on all others", timeout=SEEN_MS)
        await page.goto("about:blank")
        await one.stop()
        await one.start().wait_ready()
        assert not await paused(one)
        assert errors == []


async def in_hand(one: WorkerProcess, two: WorkerProcess, records: int) -> bool:
    """Whether both workers together have taken so many records."""
    held = [(await worker.metrics()).get("order_relay_held_records", 0) for worker in (one, two)]
    return sum(held) == records


async def test_the_pages_of_an_order_a_row_and_a_letter(
    stage: Stage, sink: ScriptedSink, tmp_path: Path, new_worker: NewWorker
) -> None:
    """Links lead to an order and to its dead letter with headers; unknown pages are 404 or 400."""
    sink.script = lambda request: Answer(422, body=b"<i>no</i>")
    async with new_worker() as worker, browser_page() as (page, _):
        await worker.wait_ready()
        await stage.publish([order(7)])
        base = f"http://127.0.0.1:{worker.web_port}"
        await page.goto(f"{base}/dead-letters")
        await eventually(lambda: listed(page, base), 60)
        (line,) = worker.log_lines("Publishing failed message to DLQ")
        await page.goto(line.partition(" console=")[2].split()[0])
        await expect(page.locator("tbody tr")).to_have_count(1)
        await page.goto(f"{base}/order?id=7")
        await expect(page.locator("#content")).to_contain_text("dead_lettered")
        await page.locator("section ul a").first.click()
        await expect(page.locator("#content")).to_contain_text("<i>no</i>")
        await expect(page.locator("#content")).to_contain_text("kafka_dlt-original-topic")
        await expect(page.locator("pre")).to_contain_text('"orderId":7')
        arguments = ("discard", "--all", "--yes", "--because", "a test", "--json")
        letter, *_ = (await relay_on(stage, tmp_path)("dlq", *arguments)).objects
        assert letter["result"] == "discarded"
        await page.goto(f"{base}/order?id=7")
        await page.get_by_role("link", name="Letters that were redriven or discarded").click()
        closed = page.locator("li", has_text="redriven 0 times before")
        await expect(closed.get_by_role("link")).to_have_text(
            f"{letter['partition']}:{letter['offset']}", timeout=SEEN_MS
        )
        for path, status, text in (
            ("/dead-letters/order_logging/0:99", 404, "there is no letter 0:99"),
            ("/dead-letters/nobody/0:0", 404, "is not one of this worker's"),
            ("/dead-letters?since=soon", 400, "must be ISO 8601"),
            ("/dead-letters?status=many", 400, "must be a whole number"),
            ("/fallback/17", 404, "there is no row 17"),
            ("/fallback?status=LOST", 400, "must be one of"),
            ("/order?id=%07", 400, "must be an order's id"),
        ):
            response = await page.goto(base + path)
            assert response is not None
            assert response.status == status, path
            await expect(page.locator("#content")).to_contain_text(text)


async def listed(page: Page, base: str) -> bool:
    """Whether the list of letters has one."""
    await page.goto(f"{base}/dead-letters")
    return await page.locator("tbody tr").count() == 1
