"""The console: a page at ``/`` with one worker's figures and the state of an order.

The page shows the answers of ``/stats``, ``/health/live`` and ``/orders/<orderId>``, and can post
to ``/probe``. It loads nothing from another host.
"""

from __future__ import annotations

from importlib.resources import files

from aiohttp import web
from aiohttp.typedefs import Handler

FILES = {
    "/": ("index.html", "text/html"),
    "/console.css": ("console.css", "text/css"),
    "/console.js": ("console.js", "text/javascript"),
}
HEADERS = {
    # The page shows answers of a target as text. If it failed to, no script in them would run.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
}


def add_console(router: web.UrlDispatcher) -> None:
    """Serve the page and its files."""
    for path, (name, content_type) in FILES.items():
        text = files(__name__).joinpath(name).read_text("utf-8")
        router.add_get(path, _page(text, content_type))


def _page(text: str, content_type: str) -> Handler:
    async def page(request: web.Request) -> web.Response:
        return web.Response(text=text, content_type=content_type, headers=HEADERS)

    return page
