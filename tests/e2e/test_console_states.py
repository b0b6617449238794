"""Every page of the console in each state: it fits, has names for screen readers and no errors."""

import re
from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from tests.support.browser import browser_page, unavailable_reason
from tests.support.dead_letter_commands import letter, put_letters
from tests.support.embedded import EmbeddedKafka
from tests.support.kafka.ports import free_ports
from tests.support.orders import orders
from tests.support.sink import Answer, ScriptedSink
from tests.support.stage import Stage
from tests.support.worker import NewWorker, WorkerProcess

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(unavailable_reason() is not None, reason=str(unavailable_reason())),
]

SEEN_MS = 60_000
LETTERS = 10_000
PAGES = (
    *("/", "/consumers", "/dead-letters", "/dead-letters?view=groups", "/fallback", "/order?id=7"),
    *("/audit", "/worker"),
)
FITS = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
# An element with its own scroll bar may be wider.
TOO_WIDE = """(width) => [...document.querySelectorAll("body *")].filter((one) =>
    one.getBoundingClientRect().right > width && !one.closest(".scroll, section"))
    .map((one) => one.outerHTML.slice(0, 200))"""
FOCUSED = "document.activeElement.textContent"
# In an accessibility snapshot a name follows the role.
NAMELESS = re.compile(
    r"^\s*- (?:button|link|textbox|checkbox|combobox|img|region)(?: \[|:|$)", re.MULTILINE
)


async def look_at(page: Page, base: str, state: str, *more: str) -> None:
    """Check each page on a phone in dark mode and on a wide screen in light mode."""
    for path in (*PAGES, *more):
        await page.set_viewport_size({"width": 390, "height": 900})
        await page.goto(base + path)
        for width, scheme in ((390, "dark"), (1920, "light")):
            await page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            await page.set_viewport_size({"width": width, "height": 900})
            shown = f"{path} {state} at {width} px"
            assert await page.evaluate(TOO_WIDE, width) == [], shown
            assert await page.evaluate(FITS), shown
            assert await page.locator("h1").count() == 1, shown
            snapshot = await page.locator("body").aria_snapshot()
            assert NAMELESS.findall(snapshot) == [], shown


async def test_pages_in_each_state(
    fragile: EmbeddedKafka, sink: ScriptedSink, tmp_path: Path
) -> None:
    """Empty, healthy, throttled, outage, without Kafka: each page fits, and its parts are named."""
    stage = fragile.stage()
    async with (
        WorkerProcess(
            tmp_path,
            stage,
            sink.url,
            breaker_failure_threshold=3,
            breaker_probe_interval_seconds=600,
            runbook_url="https://docs.example.com/runbook/",
        ) as worker,
        browser_page() as (page, errors),
    ):
        await worker.wait_ready()
        base = f"http://127.0.0.1:{worker.web_port}"
        content = page.locator("#content")
        await look_at(page, base, "empty")

        await stage.publish(orders(20))
        await sink.wait_for(lambda s: len(s.accepted) == 20, timeout=60)
        await page.goto(base)
        await expect(content).to_contain_text("nothing waits for a person", timeout=SEEN_MS)
        await look_at(page, base, "well")

        sink.script = lambda request: Answer(429, headers={"Retry-After": "2"}, body=b"slow down")
        await stage.publish(orders(20, first=100))
        await page.goto(base)
        await expect(content).to_contain_text("The target throttles", timeout=SEEN_MS)
        await look_at(page, base, "throttled")

        sink.script = lambda request: Answer(500, body=("<b>no</b>" * 60).encode())
        await page.goto(base)
        await expect(content).to_contain_text("The target fails: records", timeout=SEEN_MS)
        section = page.get_by_role("link", name="OrderRelayBreakerOpen")
        await expect(section).to_have_attribute(
            "href", "https://docs.example.com/runbook/#orderrelaybreakeropen"
        )
        await section.focus()
        await page.evaluate("document.querySelector('.target').textContent = 'old'; refresh()")
        await expect(page.locator(".target")).to_contain_text("is down")
        assert await page.evaluate(FOCUSED) == "OrderRelayBreakerOpen"
        await look_at(page, base, "outage")

        await page.goto(f"{base}/dead-letters")
        fragile.down()
        await page.goto(base)
        await expect(content).to_contain_text("Kafka does not answer", timeout=SEEN_MS)
        assert errors == []
        await page.goto(f"{base}/worker")
        await expect(page.locator(".verdicts")).to_contain_text(
            "Kafka does not answer this worker. OrderRelayKafkaUnreachable", timeout=SEEN_MS
        )
        await look_at(page, base, "no-kafka")
        assert [text for text in errors if "503" not in text] == []


async def test_ten_thousand_letters_without_a_database(stage: Stage, new_worker: NewWorker) -> None:
    """Lists of letters have pages of 50; others name what is missing. By keyboard alone."""
    await put_letters(stage, [letter(n, partition=n % 3) for n in range(LETTERS)])
    (closed,) = free_ports(1)
    async with (
        new_worker(database_url=f"postgresql+asyncpg://relay@127.0.0.1:{closed}/relay") as worker,
        browser_page() as (page, errors),
    ):
        await worker.wait_ready()
        base = f"http://127.0.0.1:{worker.web_port}"
        await page.goto(base)
        content = page.locator("#content")
        await expect(content).to_contain_text("10,000 dead letters wait", timeout=SEEN_MS)
        await expect(content).to_contain_text("The database of the fallback table", timeout=SEEN_MS)
        await look_at(page, base, "letters", "/dead-letters/order_logging/2:7")

        await page.goto(f"{base}/dead-letters/order_logging/2:7")
        await expect(page.locator("h1")).to_have_text("Dead letter 2:7")
        await page.get_by_role("button", name="Redrive").click()
        await page.get_by_label("Your name").fill("Ada")
        await page.get_by_role("button", name="Do it").click()
        await expect(page.locator("#job")).to_contain_text("1 of 1 letters", timeout=SEEN_MS)

        await page.goto(f"{base}/dead-letters")
        await expect(page.locator("tbody tr")).to_have_count(50)
        await page.get_by_role("link", name="Next page").focus()
        await page.keyboard.press("Enter")
        await expect(page.locator("tbody th").first).to_have_text("0:50")
        redrive = page.get_by_role("button", name="Redrive selected")
        first = page.get_by_label("Select letter 0:50")
        await first.focus()
        await page.keyboard.press("Space")
        await redrive.focus()
        await page.keyboard.press("Enter")
        dialog = page.get_by_role("dialog", name="Redrive selected")
        await expect(dialog.get_by_label("Your name")).to_be_focused()
        await expect(dialog).to_contain_text("1 open letter will be published")
        await page.keyboard.press("Escape")
        await expect(dialog).to_be_hidden()
        await expect(redrive).to_be_focused()
        await page.keyboard.press("Enter")
        await page.keyboard.type("Ada")
        await page.keyboard.press("Enter")
        await expect(page.locator("#job")).to_contain_text("1 of 1 letters", timeout=SEEN_MS)
        await expect(dialog).to_be_hidden()
        await expect(redrive).to_be_focused()
        assert [text for text in errors if "503" not in text] == []
    assert "The audit log was not written" in worker.log.read_text()
