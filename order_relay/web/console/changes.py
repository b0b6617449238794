"""What the console changes: dead letters, rows of the fallback table, and consumers.

Every change can be asked for as a dry run, needs the token, and is written to the audit log.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler
from msgspec import Meta

from order_relay.dead_letters.filters import LetterFilter
from order_relay.dead_letters.index import LetterIndex
from order_relay.dead_letters.letter import LetterPosition
from order_relay.dead_letters.redrive import Redrive, RedriveResult, Selection
from order_relay.errors import DatabaseUnavailable, RelayError
from order_relay.fallback.sql.audit_log import AuditEntry, AuditLog
from order_relay.fallback.store import RowFilter, Status
from order_relay.fallback.table import FallbackTable
from order_relay.kafka.producer import KafkaProducer
from order_relay.logs.log_line import LogLine
from order_relay.web.access import Access
from order_relay.web.console.cluster import Cluster
from order_relay.web.console.queries import (
    LETTER_QUERY,
    ROW_QUERY,
    BadQuery,
    letter_filter,
    row_filter,
    whole_number,
)
from order_relay.web.consumer import ServedConsumer
from order_relay.web.request_body import BODY_SECONDS, Refused, read_body

if TYPE_CHECKING:
    from order_relay.tracing.spans import Tracing

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 1024 * 1024
MAX_POSITIONS = 10_000
MAX_REDRIVES = 1000
MAX_RATE = 1_000_000
JOBS_KEPT = 50
NAMED = 5  # letters or rows in a text


Text = Annotated[str, Meta(max_length=500)]


class Body(msgspec.Struct, forbid_unknown_fields=True):
    """What a request asks for."""

    consumer: str = ""
    positions: Annotated[list[str | int], Meta(min_length=1, max_length=MAX_POSITIONS)] | None = (
        None
    )
    filter: dict[str, Annotated[str, Meta(min_length=1)]] | None = None
    rate: Annotated[float, Meta(gt=0, le=MAX_RATE)] | None = None  # letters a second
    dry_run: bool = True
    actor: Text = ""
    reason: Text = ""

    def __post_init__(self) -> None:
        if self.positions is not None and self.filter is not None:
            raise ValueError("give either positions or filter")
        if not (self.actor + self.reason).isprintable():
            raise ValueError("actor and reason must be printable characters")


@dataclass(slots=True)
class Job:
    """A change of many letters, which goes on after its request was answered.

    Attributes:
        name: What it does, such as ``Redriving``.
        total: The letters that were selected; None: they are being read.
        done: Letters changed so far.
        left: Letters that were not changed.
        remark: Why it ended early, or why a letter was not changed.
        ended: Whether it has ended.
    """

    name: str
    total: int | None = None
    done: int = 0
    left: int = 0
    remark: str = ""
    ended: bool = False

    def as_json(self) -> dict[str, Any]:
        """Return its state for the page."""
        if self.total is None:
            text = f"{self.name}: reading the topic."
        else:
            text = f"{self.name}: {self.done:,} of {self.total:,} letters"
            text += f", {self.left:,} left as they are" if self.left else ""
            text += f"; {self.remark}" if self.remark else ""
            text += "." if not self.ended else ". It has ended."
        return {
            "text": text, "total": self.total, "done": self.done, "left": self.left,
            "remark": self.remark, "ended": self.ended,
        }  # fmt: skip


@dataclass(eq=False)
class Changes:
    """Serves the requests that change something; ``add_to`` begins."""

    consumers: Mapping[str, ServedConsumer]
    rows: FallbackTable
    audit: AuditLog
    _: KW_ONLY
    producer: KafkaProducer
    access: Access
    cluster: Cluster
    tracing: Tracing | None = None
    _jobs: dict[str, Job] = field(default_factory=dict, init=False)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set, init=False)

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Serve the requests."""
        router.add_post("/dead-letters/{action:redrive|discard}", self._change(self._letters))
        router.add_post("/fallback/{action:requeue|discard}", self._change(self._of_rows))
        router.add_post("/consumers/{action:pause|resume|probe}", self._change(self._consumer))
        router.add_post("/here/{action:pause|resume|probe}", self._here)
        router.add_get("/jobs/{id}", self._job)

    async def close(self) -> None:
        """Stop the jobs; what was not changed stays open."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _change(
        self, change: Callable[[web.Request, Body], Coroutine[Any, Any, dict[str, Any]]]
    ) -> Handler:
        async def answer(request: web.Request) -> web.Response:
            try:
                body = await _read_body(request)
                # A dry run only reads, as the pages do.
                check = self.access.check_name if body.dry_run else self.access.check
                check(request)
                return web.json_response(await change(request, body))
            except BadQuery as error:
                raise Refused(400, str(error)) from None
            except RelayError as error:
                raise Refused(503, str(error)) from None

        return answer

    async def _job(self, request: web.Request) -> web.Response:
        if (job := self._jobs.get(request.match_info["id"])) is None:
            raise Refused(404, "this worker knows no such job")
        return web.json_response(job.as_json())

    # --- dead letters ---------------------------------------------------------------------------

    async def _letters(self, request: web.Request, body: Body) -> dict[str, Any]:
        action = request.match_info["action"]
        name, consumer = self._named(body)
        positions = _positions(body)
        wanted = letter_filter(_filter(body, LETTER_QUERY))
        if positions is None and body.filter is None:
            raise BadQuery("say which letters: positions, or filter ({} for all)")
        if body.dry_run:
            return {"text": await _letters_text(consumer, action, positions, wanted)}
        actor, reason = _actor(request, body), body.reason.strip()
        selection = Selection(
            positions or (),
            wanted,
            max_redrives=None if action == "discard" else MAX_REDRIVES,
        )
        job = Job("Redriving" if action == "redrive" else "Discarding")
        job_id = uuid.uuid4().hex
        self._jobs[job_id] = job
        while len(self._jobs) > JOBS_KEPT:
            self._jobs.pop(next(iter(self._jobs)))
        of = ", ".join(map(str, (positions or ())[:NAMED])) or str(wanted)
        detail = f"{of}{f'; reason: {reason}' if reason else ''}"
        redrive = Redrive(
            self.producer,
            topic=consumer.settings.order_paid_topic,
            consumer=name,
            rate=body.rate,
            done=RedriveResult.DISCARDED if action == "discard" else RedriveResult.REDRIVEN,
            tracing=self.tracing,
        )
        run = self._run(job, selection, redrive, name, actor=actor, detail=detail)
        task = asyncio.create_task(run)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return {"text": f"{job.name} has begun.", "job": job_id}

    async def _run(
        self,
        job: Job,
        selection: Selection,
        redrive: Redrive,
        name: str,
        *,
        actor: str,
        detail: str,
    ) -> None:
        consumer = self.consumers[name]
        try:
            async with consumer.one_job, consumer.open_topic() as topic:
                await selection.read(topic)
                job.left = len(selection.skipped)
                job.remark = selection.skipped[0].reason if selection.skipped else ""
                job.total = selection.count
                if not selection.count:
                    return
                async with topic.redriving(selection, redrive) as results:
                    async for result in results:
                        if result.result is redrive.done:
                            job.done += 1
                        else:
                            job.left += 1
                            job.remark = result.reason
                    job.remark = redrive.remark or job.remark
        except RelayError as error:
            job.remark = str(error)
        except asyncio.CancelledError:
            job.remark = "this worker was stopped"
            raise
        except Exception:
            job.remark = "it failed with an unexpected error, see this worker's log"
            logger.exception("Changing dead letters failed with an unexpected error")
        finally:
            job.total = job.total or 0
            job.ended = True
            consumer.letters.refresh_soon()
            text = f"{detail}; {job.remark}" if job.remark else detail
            what = f"dead letters {redrive.done.value}"
            await self._write(AuditEntry(actor, what, name, job.done, text))

    # --- rows -----------------------------------------------------------------------------------

    async def _of_rows(self, request: web.Request, body: Body) -> dict[str, Any]:
        action = request.match_info["action"]
        ids = _ids(body)
        wanted = row_filter(_filter(body, ROW_QUERY)) if ids is None else RowFilter(ids=ids.keys())
        if ids is None and wanted.status is not Status.FAILED:
            raise BadQuery("a filter must have the status FAILED; other rows are named by their id")
        count = await self.rows.count(wanted)
        verb = "requeued" if action == "requeue" else "discarded"
        if body.dry_run:
            lost = "" if action == "requeue" else " They are nowhere else."
            return {"text": f"{count:,} rows will be {verb}.{lost}"}
        actor, reason = _actor(request, body), body.reason.strip()
        changed = 0
        refused = ""
        try:
            async for page in self.rows.pages(wanted):
                # A row may have been requeued since a person saw it. It must not be discarded.
                seen: dict[Status | None, set[int]] = {}
                for row in page:
                    status = wanted.status if ids is None else ids[row.id]
                    seen.setdefault(status, set()).add(row.id)
                for status, of_status in seen.items():
                    if action == "requeue":
                        done = await self.rows.requeue(of_status)
                    else:
                        done = await self.rows.discard(of_status, status)
                    changed += len(done)
        except RelayError as error:
            if not changed:
                raise
            refused = str(error)
        fields = _filter(body, ROW_QUERY).items()
        those = ", ".join(f"{name} {value}" for name, value in fields if value)
        of = ", ".join(map(str, sorted(ids or ())[:NAMED])) or f"those with {those}"
        detail = f"{of}{f'; reason: {reason}' if reason else ''}{refused and '; ' + refused}"
        await self._write(AuditEntry(actor, f"rows {verb}", "fallback table", changed, detail))
        if refused:
            return {"text": f"{changed:,} rows were {verb}, then {refused}.", "changed": changed}
        left = f" {count - changed:,} were left: their status allows it no more." * (
            changed < count
        )
        return {"text": f"{changed:,} rows were {verb}.{left}", "changed": changed}

    # --- consumers ------------------------------------------------------------------------------

    async def _consumer(self, request: web.Request, body: Body) -> dict[str, Any]:
        action = request.match_info["action"]
        name, consumer = self._named(body)
        if action == "probe" and consumer.dispatcher.paused:
            raise BadQuery(f"{name} is paused, nothing is sent: resume it first")
        if body.dry_run:
            return {
                "text": {
                    "pause": "No worker sends anything until it is resumed, also one that starts "
                    "meanwhile. Records wait in Kafka.",
                    "resume": "Records are sent again.",
                    "probe": "The next probe goes at once.",
                }[action]
            }
        actor, reason = _actor(request, body), body.reason.strip()
        consumer.do(action)
        saved = await self._write(AuditEntry(actor, f"consumer: {action}", name, 1, reason))
        problems = await self.cluster.tell(name, f"/here/{action}?consumer={name}")
        if problems:
            told = AuditEntry(actor, f"not told: {action}", name, 0, "; ".join(problems))
            await self._write(told)
        text = f"{name}: {action} was done on this worker and on all others."
        if problems:
            text = f"{name}: {action} was done here, but not everywhere: {'; '.join(problems)}"
        if not saved and action != "probe":
            text += " The database did not answer: a worker that starts later does not know it."
        return {"text": text}

    async def _here(self, request: web.Request) -> web.Response:
        """Do on this worker what a person asked another one for."""
        self.access.check_signed(request)
        name, action = request.query.get("consumer", ""), request.match_info["action"]
        if (consumer := self.consumers.get(name)) is None:
            raise Refused(404, "no such consumer here")
        consumer.do(action)
        with contextlib.suppress(DatabaseUnavailable):
            # A worker with a database of its own must know it after a restart, too.
            if action != "probe" and (name in await self.audit.paused()) != (action == "pause"):
                told = AuditEntry("another worker", f"consumer: {action}", name, 1, "")
                await self._write(told)
        return web.json_response({})

    def _named(self, body: Body) -> tuple[str, ServedConsumer]:
        if body.consumer not in self.consumers:
            known = ", ".join(self.consumers)
            raise BadQuery(f"consumer must be one of this worker's: {known}")
        return body.consumer, self.consumers[body.consumer]

    async def _write(self, entry: AuditEntry) -> bool:
        """Log a change, and write it to the audit log; returns whether that was possible."""
        logger.warning(
            LogLine(
                "Changed by a person",
                actor=entry.actor,
                action=entry.action,
                subject=entry.subject,
                changed=entry.changed,
                detail=entry.detail,
            )
        )
        try:
            await self.audit.write(entry)
        except DatabaseUnavailable as error:
            logger.error("The audit log was not written: %s", error)
            return False
        return True


async def _letters_text(
    consumer: ServedConsumer,
    action: str,
    positions: tuple[LetterPosition, ...] | None,
    wanted: LetterFilter,
) -> str:
    def count(index: LetterIndex) -> int:
        if positions is None:
            return index.count(wanted)
        return sum(index.is_open(*position) for position in positions)

    number = await consumer.letters.ask(count)
    letters = "1 open letter" if number == 1 else f"{number:,} open letters"
    if action == "redrive":
        topic = consumer.settings.order_paid_topic
        return f"{letters} will be published to {topic} again."
    they = "it counts" if number == 1 else "they count"
    return f"{letters} will not be delivered: {they} as dealt with."


async def _read_body(request: web.Request) -> Body:
    """Read what a request asks for.

    Raises:
        BadQuery: It is not that.
        Refused: It does not come, or is too large.
    """
    content = await read_body(request, MAX_BODY_BYTES, seconds=BODY_SECONDS)
    try:
        # Unlike json, it refuses lone surrogates, which cannot be searched for.
        return msgspec.json.decode(content, type=Body)
    except msgspec.ValidationError as error:
        wrong, _, place = str(error).partition(" - at ")
        raise BadQuery(f"{place.strip('`').removeprefix('$.') or 'the body'}: {wrong}") from None
    except ValueError:
        raise BadQuery("the body must be a JSON object") from None


def _filter(body: Body, fields: Sequence[str]) -> dict[str, str]:
    found = body.filter or {}
    # Without a condition that was mistyped, a filter would find too much.
    for name in found:
        if name not in fields:
            raise BadQuery(f"filter has no field {name[:40]!r}, but {', '.join(fields)}")
    return found


def _actor(request: web.Request, body: Body) -> str:
    if not (name := body.actor.strip()):
        raise BadQuery("actor must be your name, for the audit log")
    return f"{name} ({request.remote})"


def _positions(body: Body) -> tuple[LetterPosition, ...] | None:
    try:
        return tuple(LetterPosition.parse(str(one)) for one in body.positions or ()) or None
    except ValueError as error:
        raise BadQuery(f"position {error}") from None


def _ids(body: Body) -> dict[int, Status | None] | None:
    """Return the rows that are named, each with the status that a person saw, if it is given."""
    if body.positions is None:
        return None
    found: dict[int, Status | None] = {}
    for one in body.positions:
        row_id, _, status = str(one).partition(":")
        seen = row_filter({"status": status}).status
        found[whole_number("positions: the id", row_id)] = seen
    return found
