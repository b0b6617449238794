r"""The table ``kafka_fallback_message``: its columns, and the statements of replay.

UTF-8 text is stored as it is, so that people and other programs can read and write it. Other bytes
are stored in PostgreSQL's hexadecimal notation: ``\x`` and two digits a byte.
"""
# ruff: noqa: S608 - statements are put together from this file's own text only

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any

import msgspec
import sqlalchemy as sa

from order_relay.fallback.store import FallbackRow, NewMessage, Status
from order_relay.model.byte_text import clean_text, from_text, to_text
from order_relay.model.headers import Header

TABLE_NAME = "kafka_fallback_message"

# The value read from a column that holds an impossible time.
NO_TIME = datetime(1970, 1, 1, tzinfo=UTC)

metadata = sa.MetaData()


class UtcDateTime(sa.types.TypeDecorator[datetime]):
    """A time in UTC: TIMESTAMPTZ on PostgreSQL; on SQLite text that sorts by time."""

    impl = sa.DateTime(timezone=True).with_variant(sa.Text(), "sqlite")
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> Any:
        """Return a time as the database stores it."""
        if value is None:
            return None
        return sqlite_time(value) if dialect.name == "sqlite" else value.astimezone(UTC)

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> datetime | None:
        """Return a stored time; one without a zone, as SQLite's functions write it, is UTC.

        SQLite accepts impossible times such as ``2026-02-31 10:00:00``; they read as ``NO_TIME``.
        """
        if value is None:
            return None
        try:
            moment = value if isinstance(value, datetime) else datetime.fromisoformat(value)
            return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
        except (TypeError, ValueError, OverflowError):
            return NO_TIME


def sqlite_time(moment: datetime) -> str:
    """Return a time as SQLite stores it: ``2025-12-19 10:30:00.000000``, UTC."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")


fallback_message = sa.Table(
    TABLE_NAME,
    metadata,
    # SQLite generates ids only for a column of type INTEGER.
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
    sa.Column("topic", sa.Text, nullable=False),
    sa.Column("message_key", sa.Text),
    sa.Column("payload", sa.Text),
    sa.Column("headers", sa.Text),
    sa.Column("message_partition", sa.Integer),
    sa.Column("retry_count", sa.Integer, nullable=False, server_default="0"),
    sa.Column("max_retry", sa.Integer, nullable=False, server_default="3"),
    sa.Column("status", sa.Text, nullable=False, server_default="PENDING"),
    # The default of these three is the database's clock: see migrations/.
    sa.Column("next_retry_at", UtcDateTime, nullable=False, server_default=sa.FetchedValue()),
    sa.Column("error_message", sa.Text),
    sa.Column("created_at", UtcDateTime, nullable=False, server_default=sa.FetchedValue()),
    sa.Column("updated_at", UtcDateTime, nullable=False, server_default=sa.FetchedValue()),
    sa.Column("published_at", UtcDateTime),
    sa.Column("lease_token", sa.Text),
    sa.Column("lease_until", UtcDateTime),
)


def insert_values(message: NewMessage) -> dict[str, Any]:
    """Return the columns of a new row, for ``insert(fallback_message)`` in any session.

    The other columns have defaults, which make the row PENDING and due at once.
    """
    return {
        "topic": message.topic,
        "message_key": to_text(message.key),
        "payload": to_text(message.payload),
        "headers": headers_to_text(message.headers),
        "message_partition": message.partition,
        "max_retry": message.max_retry,
        "error_message": clean_text(message.error_message),
    }


def row_from(columns: Mapping[str, Any]) -> FallbackRow:
    """Return a row; never raises, whatever its columns contain."""
    values = dict(columns)
    malformed = None
    try:
        values["headers"] = headers_from_text(values["headers"])
    except ValueError as error:
        values["headers"] = ()
        malformed = f"the headers column is wrong: {error}"
    for name in ("next_retry_at", "created_at"):
        if values[name] is NO_TIME:
            malformed = f"the {name} column is wrong: it holds no time that there is"
    for name in ("retry_count", "max_retry", "message_partition"):
        if values[name] is not None and not isinstance(values[name], int):
            malformed = f"the {name} column is wrong: it must be a whole number"
            values[name] = 0
    if not values["topic"]:
        malformed = "the topic column is empty"
    elif isinstance(values["topic"], bytes):
        malformed = "the topic column is wrong: it must be text"
    values |= {
        "topic": _readable(values["topic"]) or "",
        "error_message": _readable(values["error_message"]),
        "status": Status(values["status"]),
    }
    return FallbackRow(
        key=from_text(values.pop("message_key")),
        payload=from_text(values.pop("payload")),
        partition=values.pop("message_partition"),
        malformed=malformed,
        **values,
    )


def _readable(value: str | bytes | None) -> str | None:
    """Return text for people; in SQLite a text column may contain a BLOB."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


# --- headers as text ----------------------------------------------------------------------------


_Pair = tuple[str, str | None]


def headers_to_text(headers: tuple[Header, ...]) -> str:
    """Return headers as JSON pairs of name and value; an object could not repeat names."""
    pairs = [(clean_text(name), to_text(value)) for name, value in headers]
    return msgspec.json.encode(pairs).decode()


def headers_from_text(text: str | bytes | None) -> tuple[Header, ...]:
    """Return stored headers: pairs, or an object, which is easier to write by hand.

    Raises:
        ValueError: The text is neither; the message says what is wrong.
    """
    if not text:
        return ()
    try:
        stored = msgspec.json.decode(text, type=dict[str, str | None] | list[_Pair])
    except msgspec.MsgspecError as error:
        raise ValueError(f"{error}; must be a JSON object, or an array of pairs") from error
    pairs = stored.items() if isinstance(stored, dict) else stored
    return tuple((name, from_text(value)) for name, value in pairs)


# --- claiming and settling, in each database's dialect -----------------------------------------
# Conditions on ``status`` are literals: the databases use the partial indexes only then.

# A lease that ends after ``latest`` was written before the clock was set back.
_NOT_LEASED = "({0}.lease_until IS NULL OR {0}.lease_until <= :now OR {0}.lease_until > :latest)"
_SAME_KEY = {
    "sqlite": "{0}.topic = {1}.topic AND {0}.message_key = {1}.message_key",
    # The index has only the hash; two keys may have the same one.
    "postgresql": (
        "{0}.topic = {1}.topic"
        " AND hashtextextended({0}.message_key, 0) = hashtextextended({1}.message_key, 0)"
        " AND {0}.message_key = {1}.message_key"
    ),
}
# For the transaction of a claim. With old statistics, as after an outage has filled the table,
# PostgreSQL would sort all due rows instead of reading the first ones from the index. Compiling a
# claim (jit) would take longer than running it.
PLAN_BY_INDEX = sa.text(
    "SELECT "
    + ", ".join(
        f"set_config('{setting}', 'off', true)"
        for setting in ("enable_sort", "enable_bitmapscan", "enable_seqscan", "jit")
    )
)


@cache
def claim_statement(dialect: str, *, limit: int, after: bool) -> sa.TextualSelect:
    """Return the statement that leases due rows and returns them, in no order.

    Heads are due rows that are the first PENDING ones of their key. Followers are the rows behind a
    head, up to the first one that is not due, or that another session has locked: nothing waits for
    a lock.

    The parameters are now, token, until, latest; after_time and after_id. The limit is part of the
    text, so that PostgreSQL plans with it.
    """
    same_key = _SAME_KEY[dialect]
    postgresql = dialect == "postgresql"
    # Without INDEXED BY, SQLite would sort all PENDING rows.
    by_due, by_order = (
        ("", "")
        if postgresql
        else (f"INDEXED BY {TABLE_NAME}_due", f"INDEXED BY {TABLE_NAME}_order")
    )
    behind = "AND (h.next_retry_at, h.id) > (:after_time, :after_id)" if after else ""
    following = (
        f"SELECT x.id, x.next_retry_at, x.lease_until FROM {TABLE_NAME} x {by_order}"
        f" WHERE x.status = 'PENDING' AND {same_key.format('x', 'h')} AND x.id > h.id"
        f" ORDER BY x.id LIMIT {limit}"
    )
    followers = (
        f"heads h CROSS JOIN LATERAL ({following}) f"
        if postgresql
        else f"heads h JOIN {TABLE_NAME} f ON f.id IN (SELECT id FROM ({following}))"
    )
    left = f"{limit} - (SELECT COUNT(*) FROM heads)"
    left = f"GREATEST(0, {left})" if postgresql else f"MAX(0, {left})"
    free = (
        f"""free AS MATERIALIZED (
            SELECT id FROM {TABLE_NAME} WHERE id = ANY(ARRAY(SELECT id FROM nearest))
            FOR UPDATE SKIP LOCKED
        ), nearest_free AS (
            SELECT n.id, BOOL_AND(free.id IS NOT NULL) OVER (
                PARTITION BY n.head ORDER BY n.id) AS is_free
            FROM nearest n LEFT JOIN free ON free.id = n.id
        ), chosen AS (
            SELECT id FROM heads UNION ALL SELECT id FROM nearest_free WHERE is_free
        )"""
        if postgresql
        else "chosen AS (SELECT id FROM heads UNION ALL SELECT id FROM nearest)"
    )
    chosen = "= ANY(ARRAY(SELECT id FROM chosen))" if postgresql else "IN (SELECT id FROM chosen)"
    sql = f"""
        WITH heads AS MATERIALIZED (
            SELECT h.id, h.topic, h.message_key FROM {TABLE_NAME} h {by_due}
            WHERE h.status = 'PENDING' AND h.next_retry_at <= :now AND {_NOT_LEASED.format("h")}
              {behind}
              AND NOT EXISTS (
                SELECT 1 FROM {TABLE_NAME} e {by_order}
                WHERE e.status = 'PENDING' AND {same_key.format("e", "h")} AND e.id < h.id
                {"OFFSET 0" if postgresql else ""})
            ORDER BY h.next_retry_at, h.id
            LIMIT {limit} {"FOR UPDATE OF h SKIP LOCKED" if postgresql else ""}
        ), followers AS (
            SELECT h.id AS head, f.id, MIN(
                CASE WHEN f.next_retry_at <= :now AND {_NOT_LEASED.format("f")} THEN 1 ELSE 0 END
                ) OVER (PARTITION BY h.id ORDER BY f.id) AS due
            FROM {followers}
        ), nearest AS MATERIALIZED (
            SELECT id, head FROM followers WHERE due = 1 ORDER BY id LIMIT {left}
        ), {free}
        UPDATE {TABLE_NAME} SET lease_token = :token, lease_until = :until, updated_at = :now
        WHERE status = 'PENDING' AND {_NOT_LEASED.format(TABLE_NAME)} AND id {chosen}
        RETURNING {", ".join(column.name for column in fallback_message.columns)}
    """
    statement = sa.text(sql).bindparams(
        *(sa.bindparam(name, type_=UtcDateTime()) for name in ("now", "until", "latest"))
    )
    if after:
        statement = statement.bindparams(sa.bindparam("after_time", type_=UtcDateTime()))
    return statement.columns(*fallback_message.columns)


@cache
def set_back_statement(dialect: str) -> sa.TextClause:
    """Return the statement that makes rows due that were written after ``:soon``.

    The clock has been set back since. Leases on these rows end at ``:until`` at the latest.
    """
    by_due = "" if dialect == "postgresql" else f"INDEXED BY {TABLE_NAME}_due"
    return sa.text(
        f"UPDATE {TABLE_NAME} {by_due} SET next_retry_at = :now, updated_at = :now,"
        " lease_until = CASE WHEN lease_until > :until THEN :until ELSE lease_until END"
        " WHERE status = 'PENDING' AND next_retry_at > :soon AND updated_at > :soon"
    ).bindparams(*(sa.bindparam(name, type_=UtcDateTime()) for name in ("now", "soon", "until")))


@cache
def settle_statement(dialect: str) -> sa.TextClause:
    """Return the statement that writes outcomes: a JSON array of objects ``:rows``.

    Rows that another session has locked are left out: nothing waits for a lock.
    """
    names = ("id", "status", "retry_count", "error_message", "next_retry_at")
    if dialect == "postgresql":
        rows = (
            "SELECT id AS row_id, status, retry_count, error_message,"
            " next_retry_at AT TIME ZONE 'UTC' AS next_retry_at"
            " FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS x(id bigint, status text,"
            " retry_count integer, error_message text, next_retry_at timestamp)"
        )
        free = (
            f", free AS MATERIALIZED (SELECT id FROM {TABLE_NAME} WHERE lease_token = :token"
            " AND id = ANY(ARRAY(SELECT row_id FROM r)) FOR UPDATE SKIP LOCKED)"
        )
        is_free = "AND m.id = ANY(ARRAY(SELECT id FROM free)) "
    else:
        columns = ", ".join(
            f"json_extract(value, '$.{name}') AS {name.replace('id', 'row_id')}" for name in names
        )
        rows = f"SELECT {columns} FROM json_each(:rows)"
        free = is_free = ""
    changes = ", ".join(f"{name} = COALESCE(r.{name}, m.{name})" for name in names[1:])
    return sa.text(
        f"WITH r AS MATERIALIZED ({rows}){free}"
        f" UPDATE {TABLE_NAME} AS m SET {changes}, updated_at = :now, lease_token = NULL,"
        " lease_until = NULL,"
        " published_at = CASE r.status WHEN 'PUBLISHED' THEN :now ELSE m.published_at END"
        f" FROM r WHERE m.id = r.row_id AND m.lease_token = :token {is_free}RETURNING id"
    ).bindparams(sa.bindparam("now", type_=UtcDateTime()))
