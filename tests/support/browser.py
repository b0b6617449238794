"""A real browser: the machine's own Chromium or Chrome, without a window."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from playwright.async_api import Page, async_playwright

PROGRAMS = (
    *("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"),
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)


def program() -> str | None:
    """Path of the browser; ``None`` without one."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


def unavailable_reason() -> str | None:
    """Why there is no browser, or ``None``."""
    return None if program() else "no browser: neither chromium nor google-chrome is installed"


class Complaints(list[str]):
    """A browser's messages about a page: script errors, and loads that its policy refused."""


@asynccontextmanager
async def browser_page() -> AsyncIterator[tuple[Page, Complaints]]:
    """An empty page, and what the browser complains about."""
    complaints = Complaints()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=program(),
            # Chromium's sandbox does not start as root (containers); only our page is shown.
            chromium_sandbox=False,
            args=["--disable-dev-shm-usage"],
        )
        try:
            page = await browser.new_page(viewport={"width": 1280, "height": 900})
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on(
                "console",
                lambda message: (
                    complaints.append(message.text) if message.type == "error" else None
                ),
            )
            yield page, complaints
        finally:
            await browser.close()
