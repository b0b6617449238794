"""The console: a page for people at ``/``, with one worker's figures and what became of an order.

The page shows what ``/stats``, ``/health/live`` and ``/orders/<orderId>`` answer, and changes
nothing. Its files are served as they are; nothing of another host is loaded.
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
    # What a target answered is shown as text; were that forgotten, no script in it would run.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
}


def add_console(router: web.UrlDispatcher) -> None:
    """Serve the page and what it loads."""
    for path, (name, content_type) in FILES.items():
        text = files(__name__).joinpath(name).read_text("utf-8")
        router.add_get(path, _page(text, content_type))


def _page(text: str, content_type: str) -> Handler:
    async def page(request: web.Request) -> web.Response:
        return web.Response(text=text, content_type=content_type, headers=HEADERS)

    return page
