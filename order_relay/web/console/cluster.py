"""What all workers say: the figures of every consumer, gathered from whichever worker is asked."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from yarl import URL

from order_relay.deliveries.lookup import get_object, make_client
from order_relay.web.consumer import ServedConsumer

logger = logging.getLogger(__name__)

ASK_SECONDS = 3.0
MAX_ANSWER_BYTES = 1024 * 1024
MAX_REASON_BYTES = 1024
TABLE = " of the fallback table"
# As the alert.
INTAKE_STOPPED_SECONDS = 100.0
UNFINISHED_SECONDS = 300.0
# How far back the history shows whether it is the same record.
SAME_RECORD_MINUTES = 5
# After this time a worker has asked for the partitions of its topic, and counted its open letters.
ASKED_SECONDS = 60.0
# The worst first.
STATES = ("refuses_us", "down", "fails_for_some", "throttles", "works")
# What the overview shows by the minute.
HISTORY = ("lag", "oldest_seconds")


@dataclass(frozen=True, slots=True)
class WorkerAnswer:
    """What one worker says of one consumer.

    Attributes:
        url: The worker.
        stats: Its ``/stats``; empty if it did not answer.
        history: Its ``/history``.
        problem: Why it did not answer; empty if it did.
    """

    url: str
    stats: Mapping[str, Any] = field(default_factory=dict)
    history: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""

    @property
    def rate(self) -> float | None:
        """Records delivered a second since the last minute but one; None: it has just started."""
        minutes = self.history.get("minutes", ())[-2:]
        seconds = time.time() - minutes[0]["at"] if minutes else 0.0
        if seconds < 1.0:
            return None
        return float(self.stats["deliveries"]["delivered"] - minutes[0]["delivered"]) / seconds

    @property
    def stuck_seconds(self) -> float:
        """Age of a record that was the oldest unfinished one minutes ago, too; 0 without one.

        While a backlog is worked off, the oldest record is another one every minute. In an outage
        records must wait.
        """
        age = float(self.stats.get("oldest_unfinished_seconds") or 0.0)
        minutes = self.history.get("minutes", ())[-SAME_RECORD_MINUTES - 1 :]
        if len(minutes) <= SAME_RECORD_MINUTES or age < UNFINISHED_SECONDS:
            return 0.0
        before, passed = minutes[0]["oldest_seconds"], time.time() - minutes[0]["at"]
        is_same = before > 0.0 and age - before > 0.9 * passed
        closed = _part(self.stats, ("breaker", "state")) == "closed"
        return age if is_same and closed and not self.stats.get("paused") else 0.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """One line that a person should know.

    Attributes:
        level: ``bad``, ``warn``, ``note`` or ``good``.
        text: The line.
        alert: The alert whose section of the runbook says what to do.
        link: A page of the console that shows more.
    """

    level: str
    text: str
    alert: str = ""
    link: str = ""


@dataclass(frozen=True, slots=True)
class ConsumerView:
    """One consumer over all of its workers.

    Attributes:
        name: Its name.
        workers: Its workers.
        base: The URL of a worker that runs it, which its pages are linked to; empty: this worker
            runs it, or no worker is known.
        known: Whether Kafka, or a worker of the consumer, says which workers there are.
    """

    name: str
    workers: Sequence[WorkerAnswer]
    base: str = ""
    known: bool = True

    @property
    def answers(self) -> list[WorkerAnswer]:
        """The workers that answered."""
        return [one for one in self.workers if not one.problem]

    @property
    def state(self) -> str:
        """What the target does, as the worker sees it for which it is worst."""
        states = [str(one.stats["target"]["state"]) for one in self.answers]
        return next((state for state in STATES if state in states), "unknown")

    @property
    def said(self) -> str:
        """The line of the worker that sees the target worst."""
        for one in self._seeing(self.state):
            return str(one.stats["target"]["said"])
        return "no worker answers"

    @property
    def where(self) -> str:
        """On how many workers the target does what ``said`` tells; empty if on all."""
        return self._on(self._seeing(self.state))

    def _seeing(self, state: str) -> list[WorkerAnswer]:
        return [one for one in self.answers if one.stats["target"]["state"] == state]

    def _on(self, some: Sequence[WorkerAnswer]) -> str:
        """Return on how many of the answering workers it is so; empty if on all."""
        if len(some) in (0, len(self.answers)):
            return ""
        url = f" ({some[0].url})" if len(some) == 1 else ""
        return f" on {len(some)} of {len(self.answers)} workers{url}"

    @property
    def lag(self) -> int | None:
        """Records that are not committed; None: not all of them are known."""
        lags = [part["lag"] for one in self.answers for part in one.stats["partitions"]]
        unknown = not lags or None in lags or len(self.answers) < len(self.workers)
        return None if unknown else sum(lags)

    def total(self, *path: str) -> float | None:
        """Return the sum of a figure over the workers; None: one worker does not know it."""
        values = [_part(one.stats, path) for one in self.answers]
        return None if not values or None in values else sum(values)

    def largest(self, *path: str) -> float | None:
        """Return the largest value of a figure; None: no worker knows it."""
        values = [_part(one.stats, path) for one in self.answers]
        return max((value for value in values if value is not None), default=None)

    @property
    def rate(self) -> float:
        """Records delivered a second, over the workers that know it."""
        return sum(one.rate or 0.0 for one in self.answers)

    def minutes(self, name: str, *, add: bool) -> list[tuple[float, float]]:
        """Return a figure by the minute: the sum over workers, or the largest."""
        found: dict[int, list[float]] = {}
        for one in self.answers:
            for minute in one.history.get("minutes", ()):
                found.setdefault(int(minute["at"] // 60), []).append(float(minute[name]))
        return [
            (at * 60.0, sum(values) if add else max(values)) for at, values in sorted(found.items())
        ]

    def outages(self) -> list[tuple[float, float | None, str, str]]:
        """Return beginning, end (None: it goes on), worker and reason of outages, newest first."""
        found: list[tuple[float, float | None, str, str]] = []
        for one in self.answers:
            began: tuple[float, str] | None = None
            for change in one.history.get("target", ()):
                is_outage = change["state"] in ("down", "refuses_us")
                if is_outage and began is None:
                    began = (change["at"], change["said"])
                elif not is_outage and began is not None:
                    found.append((began[0], change["at"], one.url, began[1]))
                    began = None
            if began is not None:
                found.append((began[0], None, one.url, began[1]))
        return sorted(found, key=lambda outage: -outage[0])

    def verdicts(self) -> list[Verdict]:
        """Return what a person should know of this consumer, the worst first."""
        found = [
            Verdict("bad", f"Worker {one.url} does not answer: {one.problem}.",
                    "OrderRelayWorkerNotScraped")
            for one in self.workers if one.problem
        ]  # fmt: skip
        if not self.known:
            return [
                Verdict("note", "It does not run on this worker, and Kafka does not say on which.")
            ]
        if not self.answers:
            return found or [Verdict("bad", "No worker runs it.", "OrderRelayNoWorker")]
        letters = self.largest("open_dead_letters", "total")
        failed, pending = self.largest("fallback", "failed"), self.largest("fallback", "pending")
        query = f"?consumer={self.name}"
        rows = "/fallback?status="
        silent = [one.url for one in self.answers if not one.stats["kafka_up"]]
        asked = (self.largest("uptime_seconds") or 0) > ASKED_SECONDS and not silent
        problem = next(filter(None, (one.stats.get("group_problem") for one in self.answers)), "")
        stuck = max(one.stuck_seconds for one in self.answers)
        paused = [one for one in self.answers if one.stats.get("paused")]
        seeing = {state: self._seeing(state) for state in STATES}
        on = {state: self._on(workers) for state, workers in seeing.items()}
        checks: list[tuple[object, Verdict]] = [
            (problem, Verdict("bad", f"A worker cannot join its group: {problem}.",
                              "OrderRelayPartitionsUnassigned")),
            (asked and self.largest("topic_partitions") == 0,
             Verdict("bad", "The source topic does not exist.", "OrderRelayPartitionsUnassigned")),
            ((self.largest("intake_stopped_seconds") or 0) > INTAKE_STOPPED_SECONDS,
             Verdict("bad", "Nothing is read from Kafka though it answers: the worker ends itself, "
                     "to be started again.", "OrderRelayIntakeStandsStill")),
            (silent, Verdict("bad", f"Kafka does not answer {_names(silent)}.",
                             "OrderRelayKafkaUnreachable")),
            (self.largest("near_deletion_records"),
             Verdict("bad", "Kafka deletes records soon that are not delivered.",
                     "OrderRelayNearDeletion")),
            (self.largest("deleted_records"),
             Verdict("bad", "Kafka deleted records before they were delivered: they are lost.",
                     "OrderRelayRecordsDeleted")),
            (seeing["refuses_us"],
             Verdict("bad", "The target refuses our token, URL or certificate"
                     f"{on['refuses_us']}: records wait.", "OrderRelayTargetRefusesUs")),
            (seeing["down"],
             Verdict("bad", f"The target fails{on['down']}: records wait in Kafka, none is given "
                     "up.", "OrderRelayBreakerOpen")),
            (any(_part(one.stats, ("fallback", "database_up")) is False for one in self.answers),
             Verdict("bad", "The database of the fallback table takes no rows.",
                     "OrderRelayFallbackDatabaseDown")),
            (self.largest("fallback", "files_replaced"),
             Verdict("bad", "The fallback table's file was deleted or replaced while it was open: "
                     "its rows may be lost.", "OrderRelayFallbackFileReplaced")),
            (letters, Verdict("bad", f"{_count(letters, 'dead letter')} for a person, the oldest "
                              f"for {span(self.largest('open_dead_letters', 'oldest_seconds'))}.",
                              "OrderRelayDeadLetters", f"/dead-letters{query}")),
            (asked and letters is None,
             Verdict("bad", "The open dead letters are not known: their topic does not exist, is "
                     "still being read, or cannot be read.", "", f"/dead-letters{query}")),
            (self.largest("open_dead_letters", "deleted"),
             Verdict("bad", "Open dead letters left their topic: they are lost here.",
                     "OrderRelayOpenDeadLettersDeleted")),
            (failed, Verdict("bad", f"{_count(failed, 'row', of=TABLE)} for a person.",
                             "OrderRelayFailedRows", f"{rows}FAILED")),
            (paused, Verdict("warn", f"Paused{self._on(paused)}: nothing is sent until a person "
                             "resumes it.", "", f"/consumers{query}")),
            ((self.largest("transaction_open_seconds") or 0) > 300,
             Verdict("warn", "An open transaction of a producer holds back records.",
                     "OrderRelayTransactionOpen")),
            (not any(one.stats["partitions"] for one in self.answers),
             Verdict("warn", "No partitions: workers start, the group rebalances, or there are too "
                     "many workers.", "OrderRelayPartitionsUnassigned")),
            (self.largest("deliveries_table", "recovering"),
             Verdict("warn", "The deliveries table is being read; deliveries begin after it.",
                     "OrderRelayTableRecovering")),
            (self.largest("deliveries_table", "partitions_off"),
             Verdict("bad", "The deliveries table is off for some partitions: its store failed.",
                     "OrderRelayTableOff")),
            (stuck, Verdict("warn" if stuck and self.rate else "bad",
                     f"A record is {span(stuck)} old and still not finished: its handler or the "
                     "target does not answer, or it is tried again and again.",
                     "OrderRelayOldestUnfinishedTooOld")),
            (seeing["throttles"],
             Verdict("warn", f"The target throttles{on['throttles']}: records are sent at the rate "
                     "that it bears.", "OrderRelayTargetThrottles")),
            (pending, Verdict("warn", f"{_count(pending, 'row', of=TABLE)} for Kafka.",
                              "OrderRelayPendingRowTooOld", f"{rows}PENDING")),
            (seeing["fails_for_some"],
             Verdict("note", f"The target fails for some records{on['fails_for_some']}; they are "
                     "tried again.", "OrderRelayTargetFailsForMany")),
            (self.largest("published", "failed"),
             Verdict("note", "Kafka and the database refused posted orders; their clients got 503.",
                     "OrderRelayPublishFailed")),
        ]  # fmt: skip
        found += [verdict for holds, verdict in checks if holds]
        if any(one.level in ("bad", "warn") for one in found):
            return found
        return [Verdict("good", "Records are delivered, and nothing waits for a person."), *found]


@dataclass(eq=False)
class Cluster:
    """Asks every worker for its figures.

    Attributes:
        own: The consumers of this worker.
        members: Returns the workers of each declared consumer; None: unknown.
        sign: See ``Access.sign``.
    """

    own_url: URL
    own: Mapping[str, ServedConsumer]
    members: Callable[[], Awaitable[Mapping[str, Collection[str] | None]]]
    sign: Callable[[str], Mapping[str, str]] = lambda _: {}
    _client: aiohttp.ClientSession | None = None

    async def look(self, only: str | None = None) -> list[ConsumerView]:
        """Return the consumers, or one of them, as all workers see them now."""
        members = await self.members()
        names = [name for name in {**self.own, **members} if only in (None, name)]
        return list(await asyncio.gather(*(self._view(name, members.get(name)) for name in names)))

    async def _view(self, name: str, members: Collection[str] | None) -> ConsumerView:
        urls = self._others(members)
        others = await asyncio.gather(*(self._ask(url, name) for url in urls))
        if name in self.own:
            return ConsumerView(name, [self._here(name), *others])
        answering = [one.url for one in others if not one.problem]
        base = next(iter((*answering, *urls)), "").rstrip("/")
        return ConsumerView(name, others, base, known=members is not None)

    async def elsewhere(self) -> dict[str, str]:
        """Return the consumers that run on other workers only, each with the URL of one of them."""
        found = {}
        for name, members in (await self.members()).items():
            if name not in self.own and (urls := self._others(members)):
                found[name] = urls[0].rstrip("/")
        return found

    async def tell(self, name: str, path: str) -> list[str]:
        """Send a change to the other workers of a consumer; return a line for each that failed."""
        urls = self._others((await self.members()).get(name))
        answers = await asyncio.gather(*(self._tell(url, path) for url in urls))
        return [f"{url}: {answer}" for url, answer in zip(urls, answers, strict=True) if answer]

    def _others(self, members: Collection[str] | None) -> list[str]:
        # A member of the group can name any URL, and it becomes a link.
        urls = (url for url in members or () if url.startswith(("http://", "https://")))
        return sorted({*urls} - {str(self.own_url)})

    async def _tell(self, url: str, path: str) -> str:
        try:
            async with self._connected().post(
                URL(url).join(URL(path)), headers=self.sign(path), allow_redirects=False
            ) as response:
                if response.status == 200:
                    return ""
                reason = _reason(await response.content.read(MAX_REASON_BYTES))
                return f"status {response.status}{reason}"
        except Exception as error:  # noqa: BLE001 - any error means that it was not told
            return str(error) or type(error).__name__

    def _connected(self) -> aiohttp.ClientSession:
        if self._client is None:
            self._client = make_client(ASK_SECONDS)
        return self._client

    async def close(self) -> None:
        """Close connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def here(self, name: str) -> ConsumerView:
        """Return a consumer of this worker, as this worker alone sees it."""
        return ConsumerView(name, [self._here(name)])

    def _here(self, name: str) -> WorkerAnswer:
        own = self.own[name]
        return WorkerAnswer(str(self.own_url), own.stats.figures(), own.history.as_json())

    async def _ask(self, url: str, name: str) -> WorkerAnswer:
        try:
            stats = await self._get(URL(url) / "stats", name)
            history = await self._get(URL(url) / "history", name)
            answer = WorkerAnswer(url, stats, history)
            _check(ConsumerView(name, [answer]))
        except KeyError as error:
            return WorkerAnswer(url, problem=f"another version, its figures lack {error}")
        except Exception as error:  # noqa: BLE001 - any error means no answer
            return WorkerAnswer(url, problem=str(error) or type(error).__name__)
        return answer

    async def _get(self, page: URL, name: str) -> dict[str, Any]:
        page = page.with_query(consumer=name)
        answer = await get_object(self._connected(), page, {}, MAX_ANSWER_BYTES)
        if isinstance(answer, str) or answer.status != 200:
            raise ValueError(answer if isinstance(answer, str) else f"status {answer.status}")
        return answer.body


def _check(view: ConsumerView) -> None:
    """Raise an error if a page could not show this view: another program may have answered."""
    for one in view.answers:
        _ = one.stats["uptime_seconds"], one.stats["in_flight"], one.stats["version"]
        _ = (
            one.stats["deliveries"]["delivered"],
            [part["partition"] for part in one.stats["partitions"]],
        )
    _ = view.said, view.lag, view.verdicts(), view.outages()
    for name in HISTORY:
        view.minutes(name, add=True)


def _reason(content: bytes) -> str:
    """Return the error that a worker's answer tells; empty if another program answered."""
    try:
        error = json.loads(content)["error"]
    except (ValueError, TypeError, KeyError):
        return ""
    return f": {error}" if isinstance(error, str) else ""


def span(seconds: float | None) -> str:
    """Return a time span for people: ``20 ms``, ``45 s``, ``12 min``, ``3.4 h``, ``9 d``."""
    if seconds is None:
        return "an unknown time"
    if 0 < seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    for size, unit in ((172_800, "d"), (7200, "h"), (120, "min")):
        if seconds >= size:
            part = seconds / {"d": 86_400, "h": 3600, "min": 60}[unit]
            return f"{part:.1f} {unit}" if unit == "h" else f"{part:.0f} {unit}"
    return f"{seconds:.0f} s"


def _count(number: float | None, unit: str, *, of: str = "") -> str:
    count = int(number or 0)
    return f"{count:,} {unit}{of} waits" if count == 1 else f"{count:,} {unit}s{of} wait"


def _names(urls: Sequence[str]) -> str:
    return "this worker" if len(urls) == 1 else f"{len(urls)} workers"


def _part(stats: Any, path: Sequence[str]) -> Any:
    for key in path:
        stats = stats.get(key) if isinstance(stats, Mapping) else None
    return stats
