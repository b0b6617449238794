"""The console's pages, rendered here with Jinja2; ``console.js`` refreshes them and sends changes.

Every text of a target, of a producer or of a person is escaped by the templates.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

import jinja2
from aiohttp import web
from aiohttp.typedefs import Handler

from order_relay.dead_letters.filters import LetterFilter
from order_relay.dead_letters.index import LetterGroup, LetterIndex
from order_relay.dead_letters.letter import Letter, header_value
from order_relay.errors import RelayError
from order_relay.fallback.sql.audit_log import AuditEntry
from order_relay.fallback.store import FallbackRow, RowFilter, Status
from order_relay.logs.log_line import printable
from order_relay.model.byte_text import to_text
from order_relay.model.order_paid import is_order_id
from order_relay.version import VERSION
from order_relay.web.console.changes import Changes
from order_relay.web.console.cluster import span
from order_relay.web.console.queries import (
    LETTER_QUERY,
    ROW_QUERY,
    BadQuery,
    letter_filter,
    link,
    position,
    row_filter,
    whole_number,
)
from order_relay.web.consumer import ServedConsumer

PAGE_LENGTH = 50
GROUPS = 50
AUDIT_LENGTH = 200
# The longest that a page reads a dead-letter topic: some hundred thousand letters.
TOPIC_SECONDS = 10.0
FILES = {
    "/console.css": "text/css",
    "/console.js": "text/javascript",
}
HEADERS = {
    # Pages show answers of a target as text. If one failed to, no script in them would run.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
}
NOT_KNOWN = "-"
CHART_WIDTH, CHART_HEIGHT = 240, 48


class Console:
    """Serves the console."""

    def __init__(self, changes: Changes, *, runbook_url: str | None = None) -> None:
        """Show what can be changed; ``add_to`` serves. The runbook has a section for each alert."""
        self._changes = changes
        self._cluster = changes.cluster
        self._consumers = changes.consumers
        self._rows = changes.rows
        self._audit = changes.audit
        self._templates = jinja2.Environment(
            loader=jinja2.PackageLoader(__package__),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters |= {
            "span": time_span, "moment": moment, "number": number, "text": to_text, "chart": chart,
            "shown": shown,
        }  # fmt: skip
        self._templates.globals |= {"version": VERSION, "runbook_url": runbook_url or ""}

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Serve the pages and their files."""
        for path, content_type in FILES.items():
            content = files(__package__).joinpath(path.removeprefix("/")).read_text("utf-8")
            router.add_get(path, _file(content, content_type))
        for path, page in {
            "/": self._overview,
            "/worker": self._worker,
            "/consumers": self._of_consumers,
            "/dead-letters": self._letters,
            "/dead-letters/{consumer}/{partition:\\d{1,9}}:{offset:\\d{1,18}}": self._letter,
            "/fallback": self._fallback,
            "/fallback/{id:\\d{1,18}}": self._row,
            "/order": self._order,
            "/audit": self._audit_log,
        }.items():
            router.add_get(path, self._page(page))
        self._changes.add_to(router)

    async def close(self) -> None:
        """Stop changes under way, and close connections to other workers."""
        await self._changes.close()
        await self._cluster.close()

    def _page(self, page: Callable[[web.Request], Awaitable[str]]) -> Handler:
        async def answer(request: web.Request) -> web.Response:
            status = 200
            try:
                text = await page(request)
            except BadQuery as error:
                status, text = 400, self._render("problem.html", problem=str(error))
            except LookupError as error:
                status, text = 404, self._render("problem.html", problem=str(error.args[0]))
            except RelayError as error:  # Kafka or the database does not answer
                status, text = 503, self._render("problem.html", problem=str(error))
            return web.Response(text=text, status=status, content_type="text/html", headers=HEADERS)

        return answer

    def _render(self, template: str, **values: Any) -> str:
        return self._templates.get_template(template).render(**values)

    # --- pages ----------------------------------------------------------------------------------

    async def _overview(self, request: web.Request) -> str:
        views = await self._cluster.look()
        return self._render("overview.html", views=views)

    async def _of_consumers(self, request: web.Request) -> str:
        views = await self._cluster.look(request.query.get("consumer"))
        return self._render("consumers.html", views=views, here=tuple(self._consumers))

    async def _worker(self, request: web.Request) -> str:
        name = request.query.get("consumer") or next(iter(self._consumers))
        self._consumer(name, {}, request)
        return self._render("worker.html", view=self._cluster.here(name), here=[*self._consumers])

    async def _letters(self, request: web.Request) -> str:
        elsewhere = await self._cluster.elsewhere()
        name = request.query.get("consumer") or next(iter(self._consumers))
        consumer = self._consumer(name, elsewhere, request)
        query = request.query
        wanted = letter_filter(query)
        after = position(query.get("after", ""))
        grouped = query.get("view") == "groups"

        def read(index: LetterIndex) -> tuple[int, Sequence[LetterGroup], Sequence[Any]]:
            if grouped:
                return index.count(wanted), index.groups(wanted, limit=GROUPS), ()
            return index.count(wanted), (), index.find(wanted, after=after, limit=PAGE_LENGTH)

        count, groups, letters = await consumer.letters.ask(read)
        last = letters[-1] if len(letters) == PAGE_LENGTH else None
        return self._render(
            "dead_letters.html",
            consumer=name,
            names=tuple(self._consumers),
            elsewhere=elsewhere,
            figures=consumer.letters.figures,
            topic=consumer.settings.dlq_topic,
            query={key: query.get(key, "") for key in LETTER_QUERY},
            grouped=grouped,
            filtered=bool(wanted),
            count=count,
            groups=[(group, _group_link(query, name, group)) for group in groups],
            letters=letters,
            other_view=link(query, view=None if grouped else "groups", after=None),
            next_page=last and link(query, after=f"{last.partition}:{last.offset}"),
        )

    async def _letter(self, request: web.Request) -> str:
        name = request.match_info["consumer"]
        consumer = self._consumer(name, await self._cluster.elsewhere(), request)
        partition, offset = (int(request.match_info[part]) for part in ("partition", "offset"))
        async with consumer.open_topic() as opened:
            letter = await opened.letter(partition, offset)
        still_open = await consumer.letters.ask(lambda index: index.is_open(partition, offset))
        headers = [(header, header_value(header, value)) for header, value in letter.headers]
        return self._render(
            "letter.html", consumer=name, letter=letter, is_open=still_open, headers=headers
        )

    async def _fallback(self, request: web.Request) -> str:
        query = request.query
        wanted = row_filter(query)
        after_id = whole_number("after", query.get("after") or "0")
        rows = await self._rows.find(wanted, after_id=after_id, limit=PAGE_LENGTH)
        last = rows[-1] if len(rows) == PAGE_LENGTH else None
        return self._render(
            "fallback.html",
            query={key: query.get(key, "") for key in ROW_QUERY},
            filtered=wanted != RowFilter(),
            stats=await self._rows.stats(),
            count=await self._rows.count(wanted),
            rows=rows,
            statuses=tuple(Status),
            next_page=last and link(query, after=str(last.id)),
        )

    async def _row(self, request: web.Request) -> str:
        row_id = int(request.match_info["id"])
        found = await self._rows.find(RowFilter(ids={row_id}), after_id=0, limit=1)
        if not found:
            raise LookupError(f"there is no row {row_id}")
        return self._render("row.html", row=found[0])

    async def _order(self, request: web.Request) -> str:
        order_id = request.query.get("id", "").strip()
        if not order_id:
            return self._render("order.html", order_id="", stories=(), rows=())
        if not is_order_id(order_id):
            raise BadQuery("id must be an order's id: a whole number or printable characters")
        everything = request.query.get("letters") == "all"
        problems: list[str] = []
        stories = []
        for name, consumer in self._consumers.items():
            found = await consumer.orders.find(order_id) if consumer.orders is not None else None
            wanted = LetterFilter(key=order_id)
            letters = await consumer.letters.ask(
                lambda index, wanted=wanted: index.find(wanted, limit=PAGE_LENGTH)  # type: ignore[misc]
            )
            closed, unread = await _closed_letters(consumer, wanted) if everything else ((), "")
            problems += [unread] if unread else []
            if consumer.letters.figures is None:
                problems.append(
                    f"The open letters of {consumer.settings.dlq_topic} are not known now"
                )
            stories.append((name, found, letters, closed))
        rows: Sequence[FallbackRow] = ()
        try:
            rows = await self._rows.find(
                RowFilter(key=order_id.encode()), after_id=0, limit=PAGE_LENGTH
            )
        except RelayError as error:
            problems.append(f"The fallback table does not answer: {error}")
        return self._render(
            "order.html",
            order_id=order_id,
            everything=everything,
            stories=stories,
            elsewhere=await self._cluster.elsewhere(),
            rows=rows,
            problems=problems,
        )

    async def _audit_log(self, request: web.Request) -> str:
        entries: Sequence[AuditEntry] = await self._audit.latest(AUDIT_LENGTH)
        return self._render("audit.html", entries=entries, limit=AUDIT_LENGTH)

    def _consumer(
        self, name: str, elsewhere: Mapping[str, str], request: web.Request
    ) -> ServedConsumer:
        """Return a consumer of this worker; redirects to a worker that runs another one."""
        if name in elsewhere:
            raise web.HTTPFound(elsewhere[name] + request.path_qs)
        if name not in self._consumers:
            known = ", ".join(self._consumers)
            raise LookupError(f"consumer {name[:80]!r} is not one of this worker's: {known}")
        return self._consumers[name]


def _group_link(query: Mapping[str, str], consumer: str, group: LetterGroup) -> str:
    return link(
        query,
        consumer=consumer,
        reason=group.reason,
        status=group.http_status,
        message=group.common_text,
        view=None,
        after=None,
    )


async def _closed_letters(
    consumer: ServedConsumer, wanted: LetterFilter
) -> tuple[list[Letter], str]:
    """Read the letters that were dealt with; and say why some may be missing."""
    found: list[Letter] = []
    try:
        async with asyncio.timeout(TOPIC_SECONDS), consumer.open_topic() as topic:
            async for letter, closed in topic.matching(wanted, everything=True):
                if closed:
                    found.append(letter)
    except TimeoutError:
        return (
            found,
            f"{consumer.settings.dlq_topic} was not read to its end within {TOPIC_SECONDS:g} s",
        )
    except RelayError as error:
        return found, str(error)
    return found, ""


# --- filters of the templates -----------------------------------------------------------------


def shown(value: object, length: int = 80) -> str:
    """Return a text from outside, cut to a length (0: whole), with its control characters escaped.

    One that changes the direction of writing would show another key or order.
    """
    text = printable("" if value is None else str(value))
    return f"{text[:length]}…" if 0 < length < len(text) else text


def moment(value: datetime | float | None) -> str:
    """Return a time in UTC to the second, a dash without one."""
    if value is None:
        return NOT_KNOWN
    if not isinstance(value, datetime):
        value = datetime.fromtimestamp(value, UTC)
    return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def time_span(seconds: float | None) -> str:
    """Return a time span for people, a dash if it is not known."""
    return NOT_KNOWN if seconds is None else span(seconds)


def number(value: float | None) -> str:
    """Return a number for people, a dash if it is not known."""
    return NOT_KNOWN if value is None else f"{value:,.0f}"


def chart(points: Sequence[tuple[float, float]]) -> str:
    """Return the points of an SVG polyline, drawn from 0 to the largest value."""
    if len(points) < 2:
        return ""
    first, last = points[0][0], points[-1][0]
    top = max(value for _, value in points) or 1.0
    return " ".join(
        f"{(at - first) / (last - first) * CHART_WIDTH:.1f},"
        f"{CHART_HEIGHT - value / top * (CHART_HEIGHT - 2) - 1:.1f}"
        for at, value in points
    )


def _file(content: str, content_type: str) -> Handler:
    async def file(request: web.Request) -> web.Response:
        return web.Response(text=content, content_type=content_type, headers=HEADERS)

    return file
