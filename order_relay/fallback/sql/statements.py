"""The statements that claim and settle rows, in each database's dialect.

Conditions on ``status`` are literals: the databases use the partial indexes only then.
"""
# ruff: noqa: S608 - statements are put together from this file's own text only

from __future__ import annotations

from functools import cache

import sqlalchemy as sa

from order_relay.fallback.sql.schema import TABLE_NAME, UtcDateTime, fallback_message

_NOT_LEASED = "({0}.lease_until IS NULL OR {0}.lease_until <= :now)"
_SAME_KEY = {
    "sqlite": "{0}.topic = {1}.topic AND {0}.message_key = {1}.message_key",
    # The index has only the hash; two keys may have the same one.
    "postgresql": (
        "{0}.topic = {1}.topic"
        " AND hashtextextended({0}.message_key, 0) = hashtextextended({1}.message_key, 0)"
        " AND {0}.message_key = {1}.message_key"
    ),
}
_COLUMNS = tuple(fallback_message.columns)

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
    head; they need no lock of their own, since only the claim of their head can claim them.

    The parameters are now, token, until; after_time and after_id. The limit is part of the text, so
    that PostgreSQL plans with it.
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
            SELECT f.id, MIN(CASE WHEN f.next_retry_at <= :now AND {_NOT_LEASED.format("f")}
                             THEN 1 ELSE 0 END) OVER (PARTITION BY h.id ORDER BY f.id) AS due
            FROM {followers}
        ), chosen AS (
            SELECT id FROM heads
            UNION ALL
            SELECT id FROM (
                SELECT id FROM followers WHERE due = 1 ORDER BY id
                LIMIT {f"GREATEST(0, {left})" if postgresql else f"MAX(0, {left})"}) AS nearest
        )
        UPDATE {TABLE_NAME} SET lease_token = :token, lease_until = :until, updated_at = :now
        WHERE status = 'PENDING' AND {_NOT_LEASED.format(TABLE_NAME)} AND id {chosen}
        RETURNING {", ".join(column.name for column in _COLUMNS)}
    """
    statement = sa.text(sql).bindparams(
        sa.bindparam("now", type_=UtcDateTime()), sa.bindparam("until", type_=UtcDateTime())
    )
    if after:
        statement = statement.bindparams(sa.bindparam("after_time", type_=UtcDateTime()))
    return statement.columns(*_COLUMNS)


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
    """Return the statement that writes outcomes: a JSON array of objects ``:rows``."""
    names = ("id", "status", "retry_count", "error_message", "next_retry_at")
    if dialect == "postgresql":
        rows = (
            "SELECT id AS row_id, status, retry_count, error_message,"
            " next_retry_at AT TIME ZONE 'UTC' AS next_retry_at"
            " FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS x(id bigint, status text,"
            " retry_count integer, error_message text, next_retry_at timestamp)"
        )
    else:
        columns = ", ".join(
            f"json_extract(value, '$.{name}') AS {name.replace('id', 'row_id')}" for name in names
        )
        rows = f"SELECT {columns} FROM json_each(:rows)"
    changes = ", ".join(f"{name} = COALESCE(r.{name}, m.{name})" for name in names[1:])
    return sa.text(
        f"UPDATE {TABLE_NAME} AS m SET {changes}, updated_at = :now, lease_token = NULL,"
        " lease_until = NULL,"
        " published_at = CASE r.status WHEN 'PUBLISHED' THEN :now ELSE m.published_at END"
        f" FROM ({rows}) AS r WHERE m.id = r.row_id AND m.lease_token = :token RETURNING id"
    ).bindparams(sa.bindparam("now", type_=UtcDateTime()))
