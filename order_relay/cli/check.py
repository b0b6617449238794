"""``order-relay check``: whether everything that a worker needs is there. Changes nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from confluent_kafka import KafkaException

from order_relay.cli import command, output
from order_relay.cli.fallback.rows import file_can_be_made, file_exists
from order_relay.dead_letters.redrive_group import RedriveGroup
from order_relay.errors import (
    AccessTokenUnavailable,
    InvalidDatabaseUrl,
    InvalidSettings,
    KafkaUnavailable,
    RelayError,
)
from order_relay.fallback.sql.migrate import try_migration
from order_relay.fallback.store import RowFilter
from order_relay.fallback.table import FallbackTable
from order_relay.handlers.http import HttpHandler
from order_relay.kafka.availability import check_availability
from order_relay.kafka.topics import Topics
from order_relay.model.consumer import HttpPost
from order_relay.settings import Settings, load_settings
from order_relay.settings.consumers import ConfiguredConsumer, misspelled

# Twice what asking Kafka takes: it is asked again why it cannot be reached.
LIMIT_SECONDS = 12.0
# The embedded cluster has no answer for a missing topic.
COMMITS_SECONDS = 2.0


class Result(StrEnum):
    """The result of a check, in one word."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result for one part, and what was found."""

    result: Result
    part: str
    text: str


Findings = AsyncIterator[Finding]
Rights = Mapping[str, Result]
"""The result for each right, such as READ, if it is missing."""


@command.define(command.JSON)
async def check(*, as_json: bool) -> int:
    """Check settings, Kafka, topics and rights, database and targets.

    It changes nothing and posts no event. Exit status: 1 if anything fails.
    """
    settings, consumers, found = _load()
    if settings is not None:
        parts = {"kafka": _kafka(settings, consumers), "database": _database(settings)}
        parts |= {f"target of {one.name}": _target(one) for one in consumers}
        for findings in await asyncio.gather(*(_run(*part) for part in parts.items())):
            found += findings
    for finding in found:
        if as_json:
            output.json_line(asdict(finding))
        else:
            text = f"{finding.result:<5}{finding.part}: {finding.text}"
            output.stdout_console().print(output.plain(text), soft_wrap=True)
    return int(any(finding.result is Result.FAIL for finding in found))


def _load() -> tuple[Settings | None, Sequence[ConfiguredConsumer], list[Finding]]:
    """Load the settings and the application; each may be wrong."""
    try:
        settings = load_settings()
    except (InvalidSettings, InvalidDatabaseUrl) as error:
        return None, (), [Finding(Result.FAIL, "settings", str(error))]
    try:
        application = command.load_application()
    except SystemExit as end:  # as the worker would end; with LOG_FORMAT=json the text is logged
        text = end.code if isinstance(end.code, str) else "see the log"
        return settings, (), [Finding(Result.FAIL, "consumers", text)]
    consumers = application.consumers
    names = ", ".join(one.name for one in consumers)
    found = [Finding(Result.OK, "settings", f"the consumers are {names}")]
    for name, meant in misspelled(application.declared).items():
        found.append(Finding(Result.WARN, "settings", f"{name} is unknown, perhaps {meant}"))
    return settings, consumers, found


async def _run(part: str, findings: Findings) -> list[Finding]:
    """Collect what a check finds within its time; an error is a finding, too."""
    found: list[Finding] = []
    try:
        async with asyncio.timeout(LIMIT_SECONDS):
            async for finding in findings:
                found.append(finding)  # noqa: PERF401 - keeps those from before a time-out
    except TimeoutError:
        found.append(Finding(Result.FAIL, part, f"no answer within {LIMIT_SECONDS:g} s"))
    except Exception as error:  # noqa: BLE001 - whatever ends a check is a finding
        text = " ".join(str(error).split()) or type(error).__name__
        found.append(Finding(Result.FAIL, part, text))
    return found


async def _kafka(settings: Settings, consumers: Sequence[ConfiguredConsumer]) -> Findings:
    topics = Topics(settings)
    began = time.monotonic()
    try:
        cluster = await topics.cluster()
    except (KafkaException, AccessTokenUnavailable) as error:
        yield Finding(Result.FAIL, "kafka", await topics.explain(error))
        return
    brokers = output.count_of(len(cluster.brokers), "broker")
    took = f"{time.monotonic() - began:.2f} s"
    yield Finding(
        Result.OK, "kafka", f"{brokers} at {settings.kafka_bootstrap_servers}, answer in {took}"
    )
    if not consumers:  # they are wrong, which is told
        return
    changelogs = {one.settings.deliveries_changelog_topic for one in consumers}
    topic_rights = {name: rights for one in consumers for name, rights in _rights(one.settings)}
    group_rights = {
        name: rights for one in consumers for name, rights in _group_rights(one.settings)
    }
    allowed = await topics.allowed(list(topic_rights), list(group_rights))
    # Of a topic that may not be seen, the rights are known: none.
    seen = cluster.topics.keys() | allowed.keys()
    unseen = [one.settings for one in consumers if one.settings.dlq_topic not in seen]
    had = await asyncio.gather(*map(had_letters, unseen))
    deleted = [one.dlq_topic for one, known in zip(unseen, had, strict=True) if known]
    for name, rights in topic_rights.items():
        if name in deleted:
            text = "it was deleted: letters of it were redriven before; those still open are lost"
            yield Finding(Result.FAIL, f"topic {name}", text)
            continue
        # The changelog keeps the number of partitions with which it was made.
        width = 0 if name in changelogs else settings.topic_partitions
        topic = cluster.topics.get(name)
        yield topic_finding(name, rights, topic, allowed.get(name), settings, width=width)
    for name, rights in group_rights.items():
        if name in allowed:
            missing = {right: rights[right] for right in rights.keys() - allowed[name]}
            text = "; ".join(map(_no_right, sorted(missing))) or "its rights are there"
            yield Finding(_worst(missing.values()), f"group {name}", text)
    # A client that asks for a missing topic may create it.
    existing = [one for one in consumers if one.settings.order_paid_topic in cluster.topics]
    for finding in await asyncio.gather(*map(_availability, existing)):
        if finding is not None:
            yield finding


async def had_letters(settings: Settings) -> bool:
    """Return whether letters of the dead-letter topic, which is missing, were redriven.

    Kafka usually deletes the commits with their topic. Then nothing shows it.
    """
    try:
        async with asyncio.timeout(COMMITS_SECONDS):
            return bool(await RedriveGroup(settings).commits(range(settings.topic_partitions)))
    except (RelayError, TimeoutError):
        return False


async def _availability(consumer: ConfiguredConsumer) -> Finding | None:
    settings = consumer.settings
    try:
        await check_availability(settings, settings.consumer_group_id, settings.order_paid_topic)
    except KafkaUnavailable as error:
        text = f"it does not work for {consumer.name}: {error.reason}"
        return Finding(Result.FAIL, "kafka", text)
    return None


def _rights(settings: Settings) -> Iterator[tuple[str, Rights]]:
    """Yield the topics of a consumer, each with what a worker must be allowed to do there."""
    yield settings.order_paid_topic, {"READ": Result.FAIL, "DESCRIBE_CONFIGS": Result.WARN}
    yield settings.dlq_topic, {"WRITE": Result.FAIL, "READ": Result.WARN}
    if settings.deliveries_store != "off":
        yield settings.deliveries_changelog_topic, {"READ": Result.FAIL, "WRITE": Result.FAIL}


def _group_rights(settings: Settings) -> Iterator[tuple[str, Rights]]:
    """Yield the groups of a consumer, as ``_rights``."""
    yield settings.consumer_group_id, {"READ": Result.FAIL}
    yield RedriveGroup(settings).group_id, {"READ": Result.WARN}


def _no_right(right: str) -> str:
    return f"no right to {right}"


def _worst(results: Iterable[Result]) -> Result:
    return max(results, key=list(Result).index, default=Result.OK)


def topic_finding(
    name: str,
    rights: Rights,
    topic: Any,
    allowed: set[str] | None,
    settings: Settings,
    *,
    width: int,
) -> Finding:
    """Return the finding for a topic.

    Args:
        name: Its name.
        rights: What a worker must be allowed to do.
        topic: Its metadata; None: it does not exist, or may not be seen.
        allowed: What Kafka lets us do; None: it does not tell.
        settings: The worker's.
        width: The number of partitions that it should have at least.
    """
    part = f"topic {name}"
    if topic is None and allowed is not None:
        return Finding(Result.FAIL, part, _no_right("DESCRIBE"))
    if topic is None and settings.kafka_declare_topics:
        return Finding(Result.WARN, part, "it does not exist, a worker makes it when it starts")
    if topic is None or topic.error is not None:
        text = topic.error.str() if topic else "it does not exist, and KAFKA_DECLARE_TOPICS=false"
        return Finding(Result.FAIL, part, text)
    partitions = topic.partitions.values()
    replication = min((len(one.replicas) for one in partitions), default=0)
    missing = {} if allowed is None else {right: rights[right] for right in rights.keys() - allowed}
    results = list(missing.values())
    problems = [_no_right(right) for right in sorted(missing)]
    if any(one.leader < 0 for one in partitions):
        results.append(Result.FAIL)
        problems.append("a partition has no leader")
    if any(len(one.isrs) < len(one.replicas) for one in partitions):
        results.append(Result.WARN)
        problems.append("replicas are not in sync, Kafka may refuse writes")
    if len(partitions) < width:
        results.append(Result.WARN)
        problems.append(f"fewer than TOPIC_PARTITIONS={width}")
    if replication < settings.topic_replication_factor:
        results.append(Result.WARN)
        problems.append(f"less than TOPIC_REPLICATION_FACTOR={settings.topic_replication_factor}")
    if allowed is None:
        problems.append("Kafka does not tell our rights")
    text = f"{output.count_of(len(partitions), 'partition')}, replication {replication}"
    return Finding(_worst(results), part, "; ".join([text, *problems]))


async def _database(settings: Settings) -> Findings:
    table = FallbackTable(settings.database_url.get_secret_value())
    try:
        result, text = await _database_state(settings, table)
    except RelayError as error:
        result, text = Result.FAIL, f": {error}"
    finally:
        await table.close()
    yield Finding(result, "database", f"DATABASE_URL={table.location}{text}")


async def _database_state(settings: Settings, table: FallbackTable) -> tuple[Result, str]:
    if not file_exists(table):
        if file_can_be_made(table):
            return Result.WARN, " does not exist yet, a worker makes it"
        text = " cannot be made: the folder does not exist or may not be written"
        return Result.FAIL, text
    found = await table.look()
    if found.found == found.wanted:
        await table.find(RowFilter(), limit=1)
        await table.check_writes()
        return Result.OK, f" is at revision {found.found}"
    await try_migration(settings.database_url.get_secret_value())
    if found.found is None:
        return Result.WARN, " has no table yet, a worker makes it"
    return Result.WARN, f" is at revision {found.found}, a worker migrates it to {found.wanted}"


async def _target(consumer: ConfiguredConsumer) -> Findings:
    """Connect as a worker does, and post nothing."""
    part, settings = f"target of {consumer.name}", consumer.settings
    if not isinstance(consumer.declaration.handled_by(), HttpPost):
        yield Finding(Result.OK, part, f"the function {consumer.target}, nothing to connect to")
        return
    limit = {"external_logger_timeout_seconds": LIMIT_SECONDS}
    handler = HttpHandler(settings.model_copy(update=limit), max_connections=1)
    await handler.start()
    try:
        seconds = await handler.connect()
    finally:
        await handler.stop()
    yield Finding(Result.OK, part, f"connected to {consumer.target} in {seconds:.2f} s")
